"""Draws training examples before and after the crop and augmentation of a config."""

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8
from ml_collections import ConfigDict

from resflax.cli.image_grid import Cell, draw_grid, shorten
from resflax.data import Split, StreamingSplit, batch_indices
from resflax.nn import identity
from resflax.train import TrainState
from resflax.train.config import build_augment, build_mix
from resflax.train.dataset import build_dataset
from resflax.train.metrics import one_hot
from resflax.train.step_inputs import make_prepare_batch

COLUMNS, ROWS = 8, 2
MIN_SINGLE = 0.995  # share of the target from which an image has one class


def show_batch(config: ConfigDict, out: Path) -> None:
    """Draws the first examples of a run's first step, each as decoded and as trained on.

    The first is the image before anything is done, below the name of its class; the one below it is
    cropped and augmented, and has the names and shares of its target if this mixes classes.
    """
    dataset = build_dataset(config)
    index = batch_indices(config.seed, 0, COLUMNS * ROWS, len(dataset.train))
    cropped, labels = dataset.train.get_batch(index)
    after, targets = augment_batch(config, cropped, labels, index, dataset.num_classes)
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


def augment_batch(
    config: ConfigDict,
    images: UInt8[np.ndarray, "n height width channels"],
    labels: Int[np.ndarray, " n"],
    index: Int[np.ndarray, " n"],
    num_classes: int,
) -> tuple[UInt8[np.ndarray, "n height width channels"], Float[np.ndarray, "n classes"]]:
    """Returns images and targets as the first step of a run sees them, before normalization."""
    augment, mix = build_augment(config), build_mix(config)
    prepare = make_prepare_batch(augment, identity, mix, num_classes, needs_rng=False)
    state = TrainState(jnp.int32(0), jnp.uint32(config.seed), {}, {}, {})
    numbers = jnp.asarray(index, jnp.int32)
    batch = {"image": jnp.asarray(images), "label": jnp.asarray(labels), "index": numbers}
    inputs = prepare(state, batch | {"epoch": jnp.zeros_like(numbers)})
    target = inputs.target
    soft = target if target.ndim == 2 else one_hot(target, num_classes)
    return np.asarray(inputs.image), np.asarray(soft)
