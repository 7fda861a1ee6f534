"""The accuracy of each example, and checks of labels and targets."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from resflax.errors import UserError
from resflax.nn.ensembles import log_mean_probability

Metrics = dict[str, Array]
# `(outputs of the network, targets or labels) -> (n,)`, one float per example.
ExampleFn = Callable[[Any, Any], Array]


def one_hot(labels: Int[Array, " n"], classes: int) -> Float[Array, "n classes"]:
    """Returns one-hot targets in float32; zeros for a label that is not in `range(classes)`."""
    # In a small dtype, numbers of classes would wrap around.
    return jax.nn.one_hot(labels.astype(jnp.int32), classes, dtype=jnp.float32)


def nan_if_invalid(labels: Int[Array, " n"], classes: int) -> Float[Array, " n"]:
    """Returns NaN for each label that is not in `range(classes)`, else 0.

    >>> nan_if_invalid(jnp.array([-1, 0, 1, 2]), 2).tolist()
    [nan, 0.0, 0.0, nan]
    """
    # NumPy's numbers: `jax_debug_nans` would report one of JAX that is NaN, valid labels or not.
    return jnp.where((labels >= 0) & (labels < classes), np.float32(0), np.float32(np.nan))


def one_hot_or_nan(labels: Int[Array, " n"], classes: int) -> Float[Array, "n classes"]:
    """Returns one-hot targets in float32; NaN for a label that is not in `range(classes)`."""
    return one_hot(labels, classes) + nan_if_invalid(labels, classes)[:, None]


def check_keys(batch: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Raises `UserError` unless a batch has an array under each of the keys."""
    for key in keys:
        if key not in batch:
            raise UserError(
                f"the batch has no {key!r}, only {', '.join(map(repr, batch))}: expected an array"
            )
        if not isinstance(batch[key], np.ndarray | jax.Array):
            raise UserError(f"{key!r} is a {type(batch[key]).__name__}: expected an array")


def _check_arrays(tree: Any, name: str, examples: int) -> None:
    """Raises `UserError` unless a tree has arrays with a leading axis of examples."""
    for leaf in jax.tree.leaves(tree):
        # Under a transform, the numbers of a list are arrays.
        if isinstance(tree, list) or not isinstance(leaf, np.ndarray | jax.Array):
            raise UserError(f"{name!r} is a {type(tree).__name__}: expected an array")
        if leaf.shape[:1] != (examples,):
            raise UserError(
                f"{name!r} has an array of shape {leaf.shape}: expected arrays whose first axis has"
                f" {examples}, one row per example"
            )


def check_labels(labels: Any, examples: int) -> None:
    """Raises `UserError` unless labels are integers of shape `(examples,)`."""
    if labels.shape != (examples,) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise UserError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}: expected integers of shape"
            f" {(examples,)}"
        )


def check_eval_batch(batch: Mapping[str, Any]) -> None:
    """Raises `UserError` unless a batch has images, and a weight for each."""
    check_keys(batch, ("image", "weight"))
    examples = (len(batch["image"]),)
    if batch["weight"].shape != examples:
        raise UserError(
            f"weights have shape {batch['weight'].shape}: expected one per example, {examples}"
        )


def check_labels_of(batch: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Raises `UserError` unless a batch has an array, or a tree of arrays, under each of the keys.

    Trees must have arrays with one row per example, "label" integers of shape `(n,)` or such a
    tree.
    """
    examples = len(batch["image"])
    for key in keys:
        if isinstance(batch.get(key), Mapping | list | tuple):
            _check_arrays(batch[key], key, examples)
            continue
        check_keys(batch, (key,))
        if key == "label":
            check_labels(batch[key], examples)


def check_targets(targets: Any, shape: tuple[int, ...]) -> None:
    """Raises `UserError` unless targets are labels, or probabilities of shape `(n, classes)`.

    Args:
      targets: an array.
      shape: `(n, classes)`, that of the logits.
    """
    is_float = jnp.issubdtype(targets.dtype, jnp.floating)
    is_label = targets.shape == shape[:1] and jnp.issubdtype(targets.dtype, jnp.integer)
    if not is_label and not (targets.shape == shape and is_float):
        raise UserError(
            f"targets have shape {targets.shape} and dtype {targets.dtype}: expected integers of"
            f" shape {shape[:1]}, or probabilities, floats of shape {shape}"
        )


def correct(
    logits: Float[Array, "n classes"] | Float[Array, "members n classes"],
    labels: Int[Array, " n"] | Float[Array, "n classes"],
) -> Float[Array, " n"]:
    """Returns 1.0 where the largest logit is the label's, else 0.0; NaN counts as wrong.

    With members, it is the largest mean probability. The label of probabilities is the most
    probable class.

    Raises:
      UserError: when traced, if the labels are neither integers of shape `(n,)` nor floats of the
        shape of the logits.
    """
    if labels.shape == logits.shape[-2:] and jnp.issubdtype(labels.dtype, jnp.floating):
        labels = jnp.argmax(labels, axis=-1)
    check_labels(labels, logits.shape[-2])
    if logits.ndim == 3:
        logits = log_mean_probability(logits)
    matches = jnp.argmax(logits, axis=-1).astype(jnp.int32) == labels.astype(jnp.int32)
    return (matches & ~jnp.isnan(logits).any(axis=-1)).astype(jnp.float32)


# The metrics of a step, by name, besides its loss.
METRICS: Mapping[str, ExampleFn] = MappingProxyType({"accuracy": correct})
