"""A contact sheet: images with their most probable class."""

import contextlib
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from resflax.cli.image_outputs import OutputBatch, Prediction
from resflax.files import disk_errors_as_user_error

MAX_IMAGES = 64
CELL_INCHES = 1.4
ROW_HEIGHT = 1.3  # of an image and its text, in widths of a cell
MAX_NAME = 20
Cell = tuple[UInt8[np.ndarray, "height width channels"], Prediction]


def choose_images(count: int) -> frozenset[int]:
    """Returns the indices of at most 64 of `count` images, evenly spaced.

    >>> len(choose_images(1000)), sorted(choose_images(3))
    (64, [0, 1, 2])
    """
    shown = min(count, MAX_IMAGES)
    return frozenset(i * count // shown for i in range(shown))


@contextlib.contextmanager
def open_contact_sheet(path: Path, total: int) -> Iterator[Callable[[OutputBatch], None]]:
    """Yields a function that adds images of a batch; at the end draws them.

    Args:
      path: the .png file.
      total: number of images of all batches; if it is more than 64, 64 of them are drawn.
    """
    chosen, cells = choose_images(total), list[Cell]()

    def add(batch: OutputBatch) -> None:
        for index, pixels, predictions in zip(
            batch.indices, batch.pixels, batch.predictions, strict=True
        ):
            if index in chosen:
                cells.append((pixels.copy(), predictions[0]))

    yield add
    left_out = f", {total - len(chosen):,} left out" if total > len(chosen) else ""
    with disk_errors_as_user_error(
        f"{path} cannot be written", lambda: "free disk space, or choose another --sheet"
    ):
        draw(cells, path, f"{len(cells)} of {total:,} images{left_out}")


def draw(cells: Sequence[Cell], path: Path, title: str) -> None:
    """Draws images in rows, each below its class and probability."""
    from resflax.plotting import new_figure, plain_text, save  # imports matplotlib

    columns = math.ceil(math.sqrt(len(cells)))
    rows = math.ceil(len(cells) / columns)
    # One pair of axes for all images, since the layout of 64 pairs takes several seconds.
    width, height = max(3.0, CELL_INCHES * columns), 0.4 + CELL_INCHES * ROW_HEIGHT * rows
    figure, [ax] = new_figure(1, width=width, height=height)
    ax.set_axis_off()
    for i, (pixels, best) in enumerate(cells):
        x, y = i % columns, ROW_HEIGHT * (i // columns)
        aspect = pixels.shape[0] / pixels.shape[1]
        side = 0.94 / max(1, aspect)
        ax.imshow(
            pixels[..., 0] if pixels.shape[-1] == 1 else pixels,
            extent=(x, x + side, y + aspect * side, y),
            cmap="gray",
            vmin=0,
            vmax=255,
            interpolation="nearest" if max(pixels.shape) <= 64 else "antialiased",
        )
        name = textwrap.shorten(best.name, MAX_NAME, placeholder="...")
        text = plain_text(f"{name}\n{best.probability:.1%}")
        ax.text(x, y - 0.03, text, fontsize=7, verticalalignment="bottom")
    ax.set_xlim(0, columns)
    ax.set_ylim(ROW_HEIGHT * rows, 1 - ROW_HEIGHT)
    save(figure, path, title)
