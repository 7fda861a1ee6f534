"""DropBlock: dropout of square regions of feature maps, with one random key per example."""

from math import prod
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Key

from resflax.nn.drop import DROP_BLOCK_STREAM, uniform


class DropBlock(NamedTuple):
    """How the blocks of a stage drop regions.

    Attributes:
      size: side of the regions, in elements of the feature map.
      gamma_scale: factor of the rate.
    """

    size: int
    gamma_scale: float


# timm's, for the last but one and the last stage; no other stage drops regions.
LAST_STAGES = (DropBlock(5, 0.25), DropBlock(3, 1.0))


def stage_drop_blocks(stages: int) -> tuple[DropBlock | None, ...]:
    """Returns how each stage of a network drops regions; None for those that do not.

    >>> [row and row.size for row in stage_drop_blocks(4)], stage_drop_blocks(1)[0].size
    ([None, None, 5, 3], 3)
    """
    return (*[None] * stages, *LAST_STAGES)[-stages:]


def gamma(rate: float, size: int, space: tuple[int, ...]) -> float:
    """Returns the probability with which an element is the first of a dropped region.

    Ghiasi et al. 2018 (arXiv:1810.12890), eq. 1: as many elements are dropped as by dropout with
    this rate, if no two regions overlap. A region is not larger than the map.

    >>> gamma(0.1, 3, (7, 7)) == 0.1 / 9 * 49 / 25
    True
    """
    sides = [min(size, length) for length in space]
    places = prod([n - k + 1 for n, k in zip(space, sides, strict=True)])
    return rate / prod(sides) * prod(space) / places


def dropped_regions(
    keys: Key[Array, " n"], space: tuple[int, ...], rate: float, size: int
) -> Bool[Array, " n *space"]:
    """Returns which elements of each example's feature map are dropped, for all its channels.

    Every region is within the map (Ghiasi et al. 2018, figure 2b).

    Args:
      keys: one key per example.
      space: sizes of the map.
      rate: see `gamma`.
      size: side of the regions.
    """
    sides = [min(size, length) for length in space]
    places = tuple(n - k + 1 for n, k in zip(space, sides, strict=True))
    first = uniform(keys, DROP_BLOCK_STREAM, places) < gamma(rate, size, space)
    # The number of regions that contain an element.
    padding = [(0, 0), *((k - 1, k - 1) for k in sides)]
    strides = (1,) * (len(sides) + 1)
    counts = lax.reduce_window(
        first.astype(jnp.float32), 0.0, lax.add, (1, *sides), strides, padding
    )
    return counts > 0


def drop_block(
    keys: Key[Array, " n"],
    x: Float[Array, "n *space channels"],
    rate: float,
    row: DropBlock,
) -> Float[Array, "n *space channels"]:
    """Zeros regions of the feature maps, and divides the rest by the share that remains.

    Ghiasi et al. 2018, algorithm 1, with timm's `gamma_scale`. The share is that of each example,
    not of the batch as in timm, so that an example does not depend on the others.

    Args:
      keys: one key per example.
      x: feature maps.
      rate: share of dropped elements, before it is multiplied by `row.gamma_scale`.
      row: size of the regions, and factor of the rate.
    """
    space = x.shape[1:-1]
    keep = ~dropped_regions(keys, space, rate * row.gamma_scale, row.size)
    axes = tuple(range(1, keep.ndim))
    remaining = jnp.sum(keep, axes, jnp.float32, keepdims=True)
    scale = jnp.where(keep, prod(space) / jnp.maximum(remaining, 1), 0)
    return x * scale[..., None].astype(x.dtype)
