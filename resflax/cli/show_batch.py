"""Batches before and after what the step does to them, as a picture."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from resflax.data import Split, batch_indices, make_mix
from resflax.nn import identity
from resflax.plotting import new_figure, save
from resflax.train.builders import build_augment, build_dataset
from resflax.train.state import TrainState
from resflax.train.step import make_prepare_batch

COLUMNS, ROWS = 8, 2


def show(config: ConfigDict, out: Path) -> None:
    """Draws the first examples of a run's first step, each above what the network sees of it."""
    count = COLUMNS * ROWS
    dataset = build_dataset(config)
    before, labels, index = _first(dataset.train, config, count)
    after, targets = changed(config, before, labels, index, dataset.num_classes)
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
    save(figure, out, f"{config.dataset}: each example above what the step makes of it")


def changed(
    config: ConfigDict, images: np.ndarray, labels: np.ndarray, index: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 and targets `(n, classes)` as the first step has them."""
    mix = make_mix(mixup=config.data.mixup, cutmix=config.data.cutmix)
    prepare = make_prepare_batch(build_augment(config), identity, mix, classes, needs_rng=False)
    state = TrainState(jnp.int32(0), jnp.uint32(config.seed), {}, {}, {})
    numbers = jnp.asarray(index, jnp.int32)
    batch = {"image": jnp.asarray(images), "label": jnp.asarray(labels), "index": numbers}
    prepared = prepare(state, batch | {"epoch": jnp.zeros_like(numbers)})
    target = prepared.target
    soft = target if target.ndim == 2 else jax.nn.one_hot(target, classes, dtype=jnp.float32)
    return np.asarray(prepared.image), np.asarray(soft)


def _first(
    split: Split, config: ConfigDict, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, labels and numbers of a run's first examples."""
    index = batch_indices(config.seed, 0, count, len(split))
    return (*split.get_batch(index), index)
