"""Examples of a run's first batch, as its first step sees them."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from resflax.data import Dataset, train_batches
from resflax.nn import identity
from resflax.train.config import build_augment, build_mix, build_splits
from resflax.train.image_sizes import build_phases, resize_images
from resflax.train.metrics import one_hot
from resflax.train.state import TrainState
from resflax.train.step_inputs import make_prepare_batch


def augment_batch(
    config: ConfigDict,
    batch: Mapping[str, np.ndarray],
    num_classes: int,
) -> tuple[UInt8[np.ndarray, "n height width channels"], Float[np.ndarray, "n classes"]]:
    """Returns images and targets as the first step of a run sees them, before normalization.

    With `data.aug_splits`, they are the second copies of the examples, the first augmented ones.

    Args:
      config: of the run.
      batch: "image", "label", "index" and perhaps "repeat", as `train_batches` yields them.
      num_classes: columns of the targets.
    """
    splits, mix = build_splits(config), build_mix(config)
    augment = splits or build_augment(config)
    prepare = make_prepare_batch(augment, identity, mix, num_classes, needs_rng=False)
    state = TrainState(jnp.int32(0), jnp.uint32(config.seed), {}, {}, {})
    arrays = jax.tree.map(jnp.asarray, dict(batch))
    inputs = prepare(state, arrays | {"epoch": jnp.zeros_like(arrays["index"])})
    target = inputs.target
    soft = target if target.ndim == 2 else one_hot(target, num_classes)
    images = inputs.image[:, 1] if splits else inputs.image
    return np.asarray(images), np.asarray(soft)


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
    images, _ = augment_batch(config, first_rows(config, dataset, slice(size)), dataset.num_classes)
    return images


def first_rows(
    config: ConfigDict, dataset: Dataset, rows: slice, batch_size: int = 0
) -> dict[str, np.ndarray]:
    """Returns rows of a run's first batch before augmentation, as `train_batches` yields them.

    Args:
      config: of the run.
      dataset: its dataset.
      rows: the rows; only these are read.
      batch_size: replaces `config.batch_size`, unless it is 0.
    """
    [batch] = train_batches(
        dataset.train,
        seed=config.seed,
        batch_size=batch_size or config.batch_size,
        start=0,
        stop=1,
        local_rows=rows,
        repeats=config.data.repeats,
    )
    first = build_phases(config, len(dataset.train))[0]
    if first.image_size:
        batch["image"] = np.asarray(resize_images(jnp.asarray(batch["image"]), first.image_size))
    return batch
