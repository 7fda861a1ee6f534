"""Loss and accuracy of each example."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from resflax.nn.ensembles import log_mean_probability
from resflax.train.choice import Choice, map_value

Metrics = dict[str, Array]


def cross_entropy(
    logits: Float[Array, "n classes"] | Float[Array, "members n classes"],
    targets: Int[Array, " n"] | Float[Array, "n classes"],
    label_smoothing: float | Choice = 0.0,
) -> Float[Array, " n"]:
    """Computes the softmax cross-entropy of each example, in nats, in float32.

    Args:
      logits: logits of any float dtype. With members, the result is the mean of the members'
        cross-entropies, the loss of a network whose spec has an ensemble.
      targets: labels, or the probability of each class.
      label_smoothing: share of the target that is distributed over all classes (Szegedy et al.
        2016, section 7).

    >>> round(float(cross_entropy(jnp.zeros((1, 4)), jnp.array([2]))[0]), 4)  # log 4
    1.3863
    """
    if logits.ndim == 3:
        per_member = jax.vmap(lambda member: cross_entropy(member, targets, label_smoothing))
        return jnp.mean(per_member(logits), axis=0)
    logits = logits.astype(jnp.float32)
    if targets.ndim == 1:
        targets = one_hot(targets, logits.shape[-1])
    smooth = partial(optax.smooth_labels, targets.astype(jnp.float32))
    return optax.softmax_cross_entropy(logits, map_value(smooth, label_smoothing))


def one_hot(labels: Int[Array, " n"], classes: int) -> Float[Array, "n classes"]:
    """Returns one-hot targets in float32."""
    return jax.nn.one_hot(labels, classes, dtype=jnp.float32)


def correct(
    logits: Float[Array, "n classes"] | Float[Array, "members n classes"], labels: Int[Array, " n"]
) -> Float[Array, " n"]:
    """Returns 1.0 where the largest logit is the label's, else 0.0; NaN counts as wrong.

    With members, it is the largest mean probability.
    """
    if logits.ndim == 3:
        logits = log_mean_probability(logits)
    matches = jnp.argmax(logits, axis=-1).astype(labels.dtype) == labels
    return (matches & ~jnp.isnan(logits).any(axis=-1)).astype(jnp.float32)
