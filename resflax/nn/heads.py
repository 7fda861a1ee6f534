"""The layers after the last block: pooling over all pixels, and the head."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from resflax.nn.layers import Ops
from resflax.nn.space import mean_over_space, space_axes

Pooling = Callable[[Ops, Array], Array]
Head = Callable[[Ops, Array, int], Any]


def average(ops: Ops, x: Float[Array, "n *space channels"]) -> Float[Array, "n channels"]:
    """Returns the mean over all pixels (He et al. 2015)."""
    del ops
    return mean_over_space(x)


def maximum(ops: Ops, x: Float[Array, "n *space channels"]) -> Float[Array, "n channels"]:
    """Returns the maximum over all pixels."""
    del ops
    return jnp.max(x, space_axes(x))


def average_and_maximum(
    ops: Ops, x: Float[Array, "n *space channels"]
) -> Float[Array, "n channels"]:
    """Returns the mean of `average` and `maximum`, as timm's "avgmax"."""
    return (average(ops, x) + maximum(ops, x)) / 2


def average_then_maximum(
    ops: Ops, x: Float[Array, "n *space channels"]
) -> Float[Array, "n 2*channels"]:
    """Returns `average` and `maximum`, one after the other, as timm's "catavgmax"."""
    return jnp.concatenate([average(ops, x), maximum(ops, x)], -1)


def linear(ops: Ops, x: Float[Array, "n channels"], features: int) -> Float[Array, "n {features}"]:
    """Applies a linear layer with bias."""
    return ops.dense(x, features, name="head")


# timm's names of `global_pool`.
POOLINGS: dict[str, Pooling] = {
    "avg": average,
    "max": maximum,
    "avgmax": average_and_maximum,
    "catavgmax": average_then_maximum,
}
HEADS: dict[str, Head] = {"linear": linear}
