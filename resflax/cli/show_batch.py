"""Draws training examples before and after the crop and augmentation of a config."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from ml_collections import ConfigDict

from resflax.cli.image_grid import Cell, draw_grid, shorten
from resflax.data import Split, StreamingSplit
from resflax.errors import UserError
from resflax.train.dataset import build_dataset
from resflax.train.first_batch import augment_batch, first_rows

COLUMNS, ROWS = 8, 2
MIN_SINGLE = 0.995  # share of the target from which an image has one class


def show_batch(config: ConfigDict, out: Path) -> None:
    """Draws the first examples of a run's first step, each as decoded and as trained on.

    The first is the image before anything is done, below the name of its class; the one below it is
    cropped and augmented, and has the names and shares of its target if this mixes classes. With
    `data.repeats`, the first copies are followed by the second ones of the same examples. With
    `data.aug_splits`, the second copy of each example is drawn, the first augmented one.

    Raises:
      UserError: if the examples are not uint8 images.
    """
    dataset = build_dataset(config)
    if dataset.has_arrays:
        raise UserError(
            f"resflax data show draws uint8 images, and {config.dataset} has"
            f" {dataset.train.images.dtype} arrays of shape {dataset.image_shape}"
        )
    batch = first_rows(config, dataset, slice(None), COLUMNS * ROWS)
    cropped, labels, index = batch["image"], batch["label"], batch["index"]
    after, targets = augment_batch(config, batch, dataset.num_classes)
    before = _decoded(dataset.train, index, cropped)
    names = [shorten(name) for name in dataset.classes]
    cells: list[Cell] = []
    for row in range(0, len(index), COLUMNS):
        row_indices = range(row, row + COLUMNS)
        cells += [(before[i], names[labels[i]]) for i in row_indices]
        cells += [(after[i], _target_text(targets[i], labels[i], names)) for i in row_indices]
    title = f"{config.dataset}: each example as it is, and below as it is trained on"
    draw_grid(cells, COLUMNS, out, title)


def _decoded(
    split: Split, index: Int[np.ndarray, " n"], stored: UInt8[np.ndarray, "n h w channels"]
) -> Sequence[UInt8[np.ndarray, "height width channels"]]:
    """Returns the images of examples before they are cropped, of any size."""
    if not isinstance(split, StreamingSplit):
        return list(stored)
    return [split.decoded(int(i))[0] for i in index]


def _target_text(target: Float[np.ndarray, " classes"], label: int, names: Sequence[str]) -> str:
    """Returns the two largest shares of a target of several classes; "" for the label alone."""
    largest = np.argsort(-target, kind="stable")[:2]
    if target[label] > MIN_SINGLE:
        return ""
    return "\n".join(f"{names[k]} {target[k]:.2f}" for k in largest)
