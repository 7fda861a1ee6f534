"""Rectangles of pixels, of sizes and places that no shape depends on."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from resflax.data.augment.chance import one_of

Array = jax.Array

TRIES = 10  # as in torchvision and timm


class Box(NamedTuple):
    """`height` x `width` pixels from (`top`, `left`), int32 scalars; may reach over the edges."""

    top: Array
    left: Array
    height: Array
    width: Array


def inside(box: Box, height: int, width: int) -> Array:
    """Which pixels of an image lie in a box, bool `(height, width, 1)`.

    >>> box = Box(jnp.int32(1), jnp.int32(-1), jnp.int32(1), jnp.int32(2))
    >>> inside(box, 2, 3)[..., 0].tolist()
    [[False, False, False], [True, False, False]]
    """
    rows, columns = jnp.arange(height) - box.top, jnp.arange(width) - box.left
    rows, columns = (rows >= 0) & (rows < box.height), (columns >= 0) & (columns < box.width)
    return (rows[:, None] & columns[None, :])[..., None]


def centred(row: Array, column: Array, height: Array, width: Array) -> Box:
    """The box around a pixel; of an even side one more pixel lies before it than after."""
    return Box(row - height // 2, column - width // 2, height, width)


def centred_anywhere(key: Array, shape: tuple[int, ...], height: Array, width: Array) -> Box:
    """A box of that size around a random pixel of an image of that shape."""
    u = jax.random.uniform(key, (2,), jnp.float32)
    return centred(one_of(u[0], shape[0]), one_of(u[1], shape[1]), height, width)


def first_fit(
    areas: Array, ratios: Array, shape: tuple[int, ...]
) -> tuple[Array, tuple[Array, Array]]:
    """The first of some sizes that fits into an image of that shape: whether any does, and it.

    Args:
      areas: float32 `(tries,)`, parts of the image's area.
      ratios: float32 `(tries,)`, width by height.
      shape: `(h, w, ...)`.

    Returns:
      A bool scalar, and height and width, int32 scalars: sides rounded to pixels, at least 1.

    >>> fits, size = first_fit(jnp.asarray([1.0, 0.25]), jnp.asarray([4.0, 1.0]), (8, 8, 3))
    >>> bool(fits), [int(side) for side in size]
    (True, [4, 4])
    """
    area = areas * (shape[0] * shape[1])
    heights = jnp.round(jnp.sqrt(area / ratios)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(area * ratios)).astype(jnp.int32)
    fit = (heights > 0) & (heights <= shape[0]) & (widths > 0) & (widths <= shape[1])
    first = jnp.argmax(fit)
    return jnp.any(fit), (heights[first], widths[first])


def draw_box(
    key: Array,
    shape: tuple[int, ...],
    *,
    area: tuple[float, float],
    ratio: tuple[float, float],
    otherwise: tuple[int, int],
) -> tuple[Array, Box]:
    """A random box inside an image: whether one of `TRIES` sizes fitted, and the box.

    The area is uniform between two parts of the image's, the ratio of width to height log-uniform,
    so that standing boxes are as likely as lying ones; the place is uniform among all that there
    are. Where no size fits it is the one `otherwise`, in the middle.
    """
    u = jax.random.uniform(key, (2 * TRIES + 2,), jnp.float32)
    areas = area[0] + (area[1] - area[0]) * u[:TRIES]
    low, high = (math.log(limit) for limit in ratio)
    ratios = jnp.exp(low + (high - low) * u[TRIES:-2])
    fits, size = first_fit(areas, ratios, shape)
    height, width = (jnp.where(fits, a, jnp.int32(b)) for a, b in zip(size, otherwise, strict=True))
    down, right = shape[0] - height, shape[1] - width
    top = jnp.where(fits, one_of(u[-2], down + 1), down // 2)
    left = jnp.where(fits, one_of(u[-1], right + 1), right // 2)
    return fits, Box(top, left, height, width)
