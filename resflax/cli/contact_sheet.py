"""A contact sheet: images with their most probable class."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from resflax.cli.image_grid import draw_grid, shorten
from resflax.cli.image_outputs import OutputBatch, Prediction
from resflax.files import disk_errors_as_user_error

MAX_IMAGES = 64
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
    columns = math.ceil(math.sqrt(len(cells)))
    texts = (f"{shorten(best.name)}\n{best.probability:.1%}" for _, best in cells)
    images = (pixels for pixels, _ in cells)
    draw_grid(list(zip(images, texts, strict=True)), columns, path, title)
