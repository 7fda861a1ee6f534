"""Examples of a run's first batch, as its first step sees them."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8
from ml_collections import ConfigDict

from resflax.data import Dataset, batch_indices
from resflax.nn import identity
from resflax.train.config import build_augment, build_mix
from resflax.train.metrics import one_hot
from resflax.train.state import TrainState
from resflax.train.step_inputs import make_prepare_batch


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
    batch["epoch"] = jnp.zeros_like(numbers)
    if config.data.repeats > 1:
        batch["repeat"] = jnp.zeros_like(numbers)
    inputs = prepare(state, batch)
    target = inputs.target
    soft = target if target.ndim == 2 else one_hot(target, num_classes)
    return np.asarray(inputs.image), np.asarray(soft)


def first_images(
    config: ConfigDict, dataset: Dataset, count: int
) -> UInt8[np.ndarray, "n height width channels"] | None:
    """Returns the first images of a run's first batch as they are trained on; None for others.

    Mixup and CutMix pair these images with each other, not with the rest of the batch.

    Args:
      config: of the run.
      dataset: its dataset.
      count: number of images, rounded down to an even number for pairs.
    """
    shape, size = dataset.image_shape, min(count, config.batch_size) // 2 * 2
    if dataset.has_arrays or len(shape) != 3 or shape[-1] not in (1, 3) or not size:
        return None
    index = batch_indices(config.seed, 0, config.batch_size, len(dataset.train))[:size]
    images, labels = dataset.train.get_batch(index)
    images, _ = augment_batch(config, images, labels, index, dataset.num_classes)
    return images
