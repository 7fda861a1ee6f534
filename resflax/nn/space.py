"""Operations over the spatial axes: all axes but the first (batch) and the last (channels)."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def space_axes(x: Array) -> tuple[int, ...]:
    """Returns the numbers of the spatial axes.

    >>> space_axes(jnp.ones((8, 100, 3))), space_axes(jnp.ones((8, 16, 32, 32, 3)))
    ((1,), (1, 2, 3))
    """
    return tuple(range(1, x.ndim - 1))


def mean_over_space(x: Float[Array, "n *space channels"]) -> Float[Array, "n channels"]:
    """Returns the mean of each example's channels (global average pooling)."""
    return jnp.mean(x, space_axes(x))


def expand_like(
    vectors: Float[Array, "n channels"], x: Float[Array, "n *space channels"]
) -> Float[Array, "n *ones channels"]:
    """Returns one vector per example with spatial axes of size 1, as many as `x` has."""
    return jnp.expand_dims(vectors, space_axes(x))


def per_channel(vector: Float[Array, " channels"], x: Float[Array, "*axes channels"]) -> Array:
    """Returns one number per channel with as many axes as `x`, to be multiplied with it or added.

    NumPy's rule adds these axes as well, but `jax_numpy_rank_promotion="raise"` forbids that.
    """
    return lax.broadcast_to_rank(vector, x.ndim)
