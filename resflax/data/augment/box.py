"""Random rectangles of pixels whose sizes and positions are traced values."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

ATTEMPTS = 10  # as in torchvision and timm


class Box(NamedTuple):
    """`height` x `width` pixels at (`top`, `left`), int32 scalars; may extend past the edges."""

    top: Int[Array, ""]
    left: Int[Array, ""]
    height: Int[Array, ""]
    width: Int[Array, ""]


def box_mask(box: Box, height: int, width: int) -> Bool[Array, "height width 1"]:
    """Returns which pixels of an image are inside a box.

    >>> box = Box(jnp.int32(1), jnp.int32(-1), jnp.int32(1), jnp.int32(2))
    >>> box_mask(box, 2, 3)[..., 0].tolist()
    [[False, False, False], [True, False, False]]
    """
    rows = jnp.arange(height, dtype=jnp.int32) - box.top
    columns = jnp.arange(width, dtype=jnp.int32) - box.left
    rows, columns = (rows >= 0) & (rows < box.height), (columns >= 0) & (columns < box.width)
    return (rows[:, None] & columns[None, :])[..., None]


def uniform_to_int(u: Float[Array, "*shape"], count: Int[Array, ""] | int) -> Int[Array, "*shape"]:
    """Maps uniform numbers from [0, 1) to uniform integers from 0 to `count - 1`, int32.

    Lets one call of the random generator serve several draws.

    >>> uniform_to_int(jnp.asarray([0.0, 0.3, 0.99]), 4).tolist()
    [0, 1, 3]
    """
    count = jnp.asarray(count, jnp.int32)
    return jnp.minimum(jnp.floor(u * count.astype(jnp.float32)).astype(jnp.int32), count - 1)


def centered_box(
    row: Int[Array, ""], column: Int[Array, ""], height: Int[Array, ""], width: Int[Array, ""]
) -> Box:
    """Returns the box around a pixel; an even side extends one pixel further before it."""
    return Box(row - height // 2, column - width // 2, height, width)


def sample_centered_box(
    key: Key[Array, ""], shape: tuple[int, ...], height: Int[Array, ""], width: Int[Array, ""]
) -> Box:
    """Samples a box of a given size around a uniformly random pixel of an image of `shape`."""
    u = jax.random.uniform(key, (2,), jnp.float32)
    row, column = uniform_to_int(u[0], shape[0]), uniform_to_int(u[1], shape[1])
    return centered_box(row, column, height, width)


def first_fitting_size(
    areas: Float[Array, " attempts"], ratios: Float[Array, " attempts"], shape: tuple[int, ...]
) -> tuple[Bool[Array, ""], tuple[Int[Array, ""], Int[Array, ""]]]:
    """Returns the first of several box sizes that fits into an image.

    Args:
      areas: float32 `(attempts,)`, box areas as fractions of the image area.
      ratios: float32 `(attempts,)`, width by height.
      shape: image shape `(h, w, ...)`.

    Returns:
      Whether any size fits, a bool scalar; and height and width, int32 scalars, rounded to whole
      pixels and at least 1.

    >>> fits, size = first_fitting_size(jnp.asarray([1.0, 0.25]), jnp.asarray([4.0, 1.0]), (8, 8))
    >>> bool(fits), [int(side) for side in size]
    (True, [4, 4])
    """
    area = areas * (shape[0] * shape[1])
    heights = jnp.round(jnp.sqrt(area / ratios)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(area * ratios)).astype(jnp.int32)
    fit = (heights > 0) & (heights <= shape[0]) & (widths > 0) & (widths <= shape[1])
    first = jnp.argmax(fit)
    return jnp.any(fit), (heights[first], widths[first])


def sample_box(
    key: Key[Array, ""],
    shape: tuple[int, ...],
    *,
    area: tuple[float, float],
    ratio: tuple[float, float],
    fallback: tuple[int, int],
) -> tuple[Bool[Array, ""], Box]:
    """Samples a box inside an image of `shape`, with `ATTEMPTS` attempts at its size.

    The area is uniform, the aspect ratio log-uniform (so that portrait and landscape are equally
    likely), and the position uniform.

    Args:
      key: a key for this image.
      shape: image shape `(h, w, ...)`.
      area: smallest and largest area, as fractions of the image area.
      ratio: smallest and largest ratio of width to height.
      fallback: height and width of the centered box to use if no sampled size fits.

    Returns:
      Whether a sampled size fits, a bool scalar; and the box.
    """
    u = jax.random.uniform(key, (2 * ATTEMPTS + 2,), jnp.float32)
    areas = area[0] + (area[1] - area[0]) * u[:ATTEMPTS]
    low, high = (math.log(limit) for limit in ratio)
    ratios = jnp.exp(low + (high - low) * u[ATTEMPTS:-2])
    fits, size = first_fitting_size(areas, ratios, shape)
    height, width = (jnp.where(fits, a, jnp.int32(b)) for a, b in zip(size, fallback, strict=True))
    max_top, max_left = shape[0] - height, shape[1] - width
    top = jnp.where(fits, uniform_to_int(u[-2], max_top + 1), max_top // 2)
    left = jnp.where(fits, uniform_to_int(u[-1], max_left + 1), max_left // 2)
    return fits, Box(top, left, height, width)
