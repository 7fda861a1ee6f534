"""A figure of images in rows, each with a text above it."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from resflax.data.decode import to_pillow

CELL_INCHES = 1.4
ROW_HEIGHT = 1.3  # of an image and its text, in widths of a cell
MAX_NAME = 20
MAX_SIDE = 256  # larger images are reduced, since they are drawn smaller than this
Cell = tuple[UInt8[np.ndarray, "height width channels"], str]


def draw_grid(cells: Sequence[Cell], columns: int, path: Path, title: str) -> None:
    """Draws images of any size, gray or RGB, with a text of one or two lines each, to a PNG."""
    from resflax.plotting import new_figure, plain_text, save  # imports matplotlib

    rows = math.ceil(len(cells) / columns)
    # One pair of axes for all images, since the layout of 64 pairs takes several seconds.
    width, height = max(3.0, CELL_INCHES * columns), 0.4 + CELL_INCHES * ROW_HEIGHT * rows
    figure, [ax] = new_figure(1, width=width, height=height)
    ax.set_axis_off()
    for i, (pixels, text) in enumerate(cells):
        x, y = i % columns, ROW_HEIGHT * (i // columns)
        aspect = pixels.shape[0] / pixels.shape[1]
        side = 0.94 / max(1, aspect)
        ax.imshow(
            reduce_size(pixels).squeeze(-1) if pixels.shape[-1] == 1 else reduce_size(pixels),
            extent=(x, x + side, y + aspect * side, y),
            cmap="gray",
            vmin=0,
            vmax=255,
            interpolation="nearest" if max(pixels.shape) <= 64 else "antialiased",
        )
        ax.text(x, y - 0.03, plain_text(text), fontsize=7, verticalalignment="bottom")
    ax.set_xlim(0, columns)
    ax.set_ylim(ROW_HEIGHT * rows, 1 - ROW_HEIGHT)
    save(figure, path, title)


def shorten(name: str) -> str:
    """Returns a name, or its start if it has more than 20 characters.

    >>> shorten("a_very_long_name_of_a_class")
    'a_very_long_name_...'
    """
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 3]}..."


def reduce_size(
    pixels: UInt8[np.ndarray, "height width channels"],
) -> UInt8[np.ndarray, "out_height out_width channels"]:
    """Returns an image with at most `MAX_SIDE` pixels on each side.

    >>> reduce_size(np.zeros((512, 100, 1), np.uint8)).shape
    (256, 50, 1)
    """
    image = to_pillow(pixels)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return np.asarray(image).reshape(image.height, image.width, pixels.shape[-1])
