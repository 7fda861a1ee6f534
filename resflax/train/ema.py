"""An exponential moving average of the weights (Polyak and Juditsky 1992, in its decaying form)."""

from typing import TypeVar

import jax
import jax.numpy as jnp

Array = jax.Array
Tree = TypeVar("Tree")


def ema_update(ema: Tree, params: Tree, decay: float, step: Array | int) -> Tree:
    """`d ema + (1 - d) params` with `d = min(decay, (1 + step) / (10 + step))`.

    The second bound, TensorFlow's, lets the average forget the first weights sooner: an average of
    a fixed decay keeps `decay^step` of them.

    Args:
      ema: the average so far; float leaves.
      params: of its structure, shapes and dtypes: the weights after the update.
      decay: from 0 to less than 1.
      step: the number of updates before this one, any integer scalar.

    >>> ema_update({"w": jnp.zeros(1)}, {"w": jnp.ones(1)}, 0.999, 0)["w"].tolist()  # d = 1 / 10
    [0.8999999761581421]
    """
    # 1 - d, not d: a float32 of 0.9999 is off by a five-thousandth of what it lacks to 1.
    rate = jnp.maximum(1 - decay, 9 / (10 + jnp.asarray(step, jnp.float32)))
    return jax.tree.map(lambda old, new: old + rate.astype(old.dtype) * (new - old), ema, params)
