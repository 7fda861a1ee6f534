"""Inputs of the network and of the loss: a batch after augmentation and mixing."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt32

from resflax.data.augment import Augment, Mix, flip_parity
from resflax.data.augment.splits import Splits, copy_keys
from resflax.train.metrics import check_keys, check_labels_of, one_hot_or_nan
from resflax.train.state import TrainState

# Arrays with a leading axis of examples; "target" and "label" may be trees of them.
Batch = dict[str, Any]


# Used in place of the number of an example for draws that are the same for a whole batch.
WHOLE_BATCH = -1


class TrainInputs(NamedTuple):
    """A batch after augmentation: inputs of the network and of the loss.

    Attributes:
      image: normalized images; with copies `(n, copies, ...)`.
      target: targets of the loss: labels, the probability of each class, or any tree.
      label: labels for the metrics, the batch's; its targets before they are mixed without labels.
      dropout_keys: one key per example, `(n,)` or `(n, copies)`, for a network that needs them,
        else None.
    """

    image: Float[Array, "n *copies height width channels"]
    target: Any
    label: Any
    dropout_keys: Key[Array, " n *copies"] | None


def example_keys(
    seed: UInt32[Array, ""], step: Int[Array, ""], index: Int[Array, " n"]
) -> Key[Array, " n"]:
    """Returns one key per example, a function of (seed, step, example) only."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def make_prepare_batch(
    augment: Augment | Splits | None,
    normalize: Callable[[Array], Array],
    mix: Mix | None,
    num_classes: int,
    needs_rng: bool,
    mix_steps: int | None = None,
) -> Callable[[TrainState, Batch], TrainInputs]:
    """Makes `(state, batch) -> inputs`: augmentation, normalization, mixup and CutMix.

    With `Splits` as augmentation, every example has several copies. Mixup and CutMix are applied in
    the first `mix_steps` steps only, if given.
    """

    def prepare(state: TrainState, batch: Batch) -> TrainInputs:
        needs_keys = augment or mix or needs_rng
        check_keys(batch, ("image", *["index"] * bool(needs_keys)))
        images, (target, label) = batch["image"], loss_and_metric_targets(batch)
        keys: Any = None
        if needs_keys:
            # Each consumer folds the number of its own stream into them.
            keys = example_keys(state.seed, state.step, batch["index"])
        if needs_keys and "repeat" in batch:
            keys = jax.vmap(jax.random.fold_in)(keys, batch["repeat"])
        if augment and "epoch" in batch:
            parity = flip_parity(state.seed, batch["index"], batch["epoch"])
            images = augment(keys, images, parity)
        elif augment:
            images = augment(keys, images)
        images = normalize(images)
        if mix:
            is_label = getattr(target, "ndim", None) == 1
            soft = one_hot_or_nan(target, num_classes) if is_label else target
            mix_keys = keys
            if getattr(mix, "mode", "") == "batch":
                numbers = jnp.minimum(batch["index"], WHOLE_BATCH)  # all of them the same
                mix_keys = example_keys(state.seed, state.step, numbers)
            mixed = mix(mix_keys, images, soft)
            if mix_steps is not None:
                is_on = state.step < mix_steps
                mixed = jax.tree.map(lambda x, y: jnp.where(is_on, x, y), mixed, (images, soft))
            images, target = mixed
        if needs_rng and isinstance(augment, Splits):
            keys = jnp.stack(copy_keys(keys, augment.copies), axis=1)
        return TrainInputs(images, target, label, keys if needs_rng else None)

    return prepare


def loss_and_metric_targets(batch: Batch) -> tuple[Any, Any]:
    """Returns what a batch has for the loss, and for the metrics."""
    given = [key for key in ("target", "label") if key in batch] or ["label"]
    check_labels_of(batch, given)
    return batch[given[0]], batch[given[-1]]
