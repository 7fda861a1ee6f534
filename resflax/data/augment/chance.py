"""Choices from numbers that are uniform from 0 to 1, of which one call draws many."""

import jax
import jax.numpy as jnp

Array = jax.Array


def one_of(u: Array, count: Array | int) -> Array:
    """The integer from 0 to `count - 1` that a number from 0 to 1 chooses, int32; all as likely.

    >>> one_of(jnp.asarray([0.0, 0.3, 0.99]), 4).tolist()
    [0, 1, 3]
    """
    count = jnp.asarray(count, jnp.int32)
    return jnp.minimum(jnp.floor(u * count.astype(jnp.float32)).astype(jnp.int32), count - 1)
