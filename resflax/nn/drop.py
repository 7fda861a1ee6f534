"""Stochastic depth and dropout with one random key per example; see also `drop_block`.

What is dropped from an example depends only on its key, not on its position in the batch or on the
number of devices.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

# Fields of `Spec` with the rates of what training drops.
RATES = ("dropout", "drop_path", "drop_block")
# Numbers folded into each example's key, distinct from those that `resflax.data` folds in.
DROP_PATH_STREAM, DROPOUT_STREAM = 2000, 2001
BLOCK_STREAM = 2004  # 2002 and 2003 are those of other files
DROP_BLOCK_STREAM = 1999  # folded into the key of a block and an example


def uniform(
    keys: Key[Array, " n"], stream: int, shape: tuple[int, ...]
) -> Float[Array, " n *shape"]:
    """Returns uniform float32 numbers in [0, 1), drawn for each example from its own key."""

    def draw(key: Array) -> Array:
        return jax.random.uniform(jax.random.fold_in(key, stream), shape, jnp.float32)

    return jax.vmap(draw)(keys)


def block_rates(rate: float, blocks: int) -> list[float]:
    """Returns the drop probability of each block: `rate * l / (L - 1)` for block l of L.

    >>> block_rates(0.5, 3)
    [0.0, 0.25, 0.5]
    """
    return [rate * i / max(blocks - 1, 1) for i in range(blocks)]


def block_keys(keys: Key[Array, " n"], blocks: int) -> Key[Array, "{blocks} n"]:
    """Returns keys for each block and example, for what a block draws itself."""

    def fold(block: Array) -> Array:
        return jax.vmap(lambda key: jax.random.fold_in(key, BLOCK_STREAM + block))(keys)

    return jax.vmap(fold)(jnp.arange(blocks))


def drop_path(
    keys: Key[Array, " n"], rates: Float[Array, " blocks"] | Sequence[float]
) -> Float[Array, "{len(rates)} n"]:
    """Returns factors for the branches of each block and example (stochastic depth).

    The branch of a block with rate p is dropped (factor 0) with probability p, and otherwise
    multiplied by 1 / (1 - p), so that its expectation equals its value in evaluation. Huang et al.
    2016 (arXiv:1603.09382), section 3, with timm's rates and scaling, drawn per example instead of
    per batch.

    Args:
      keys: one key per example.
      rates: drop probability of each block, see `block_rates`; they may be traced.

    >>> drop_path(jax.random.split(jax.random.key(0), 2), block_rates(0.999, 3))[0].tolist()
    [1.0, 1.0]
    """
    rates = jnp.asarray(rates, jnp.float32)[None]
    keep = uniform(keys, DROP_PATH_STREAM, rates.shape[1:]) >= rates
    return jnp.where(keep, 1 / (1 - rates), 0.0).T


def dropout(
    keys: Key[Array, " n"], x: Float[Array, " n *features"], rate: float
) -> Float[Array, " n *features"]:
    """Zeros each element of `x` with probability `rate` and divides the others by `1 - rate`.

    Srivastava et al. 2014 (JMLR 15), section 4, scaled in training. `keys` has one key per example.
    """
    keep = uniform(keys, DROPOUT_STREAM, x.shape[1:]) >= rate
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))
