"""Draws training examples before and after the augmentation of a config."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8
from ml_collections import ConfigDict

from resflax.data import Split, batch_indices
from resflax.nn import identity
from resflax.plotting import new_figure, save
from resflax.train import TrainState
from resflax.train.config import build_augment, build_mix
from resflax.train.dataset import build_dataset
from resflax.train.step import make_prepare_batch

COLUMNS, ROWS = 8, 2


def show_batch(config: ConfigDict, out: Path) -> None:
    """Draws the first examples of a run's first step, each above its augmented version."""
    count = COLUMNS * ROWS
    dataset = build_dataset(config)
    before, labels, index = _first_examples(dataset.train, config, count)
    after, targets = augment_batch(config, before, labels, index, dataset.num_classes)
    figure, axes = new_figure(COLUMNS, rows=2 * ROWS, height=1.0 * 2 * ROWS)
    for i in range(count):
        row, column = divmod(i, COLUMNS)
        mixed = " ".join(f"{k}:{targets[i, k]:.1f}" for k in np.flatnonzero(targets[i] > 0.05))
        for ax, image, title in (
            (axes[2 * row * COLUMNS + column], before[i], str(labels[i])),
            (axes[(2 * row + 1) * COLUMNS + column], after[i], mixed),
        ):
            ax.imshow(image.squeeze(), cmap="gray" if image.shape[-1] == 1 else None)
            ax.set_title(title, fontsize=7)
            ax.set_axis_off()
    save(figure, out, f"{config.dataset}: each example above its augmented version")


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
    soft = target if target.ndim == 2 else jax.nn.one_hot(target, num_classes, dtype=jnp.float32)
    return np.asarray(inputs.image), np.asarray(soft)


def _first_examples(
    split: Split, config: ConfigDict, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns images, labels and indices of a run's first examples."""
    index = batch_indices(config.seed, 0, count, len(split))
    return (*split.get_batch(index), index)
