"""Fog: a fractal cloud by the diamond-square algorithm.

Hendrycks and Dietterich 2019 (arXiv:1903.12261), section 3.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num

from resflax.data.corruptions.pixels import at_severity, from_unit, to_unit


def plasma_fractal(
    key: Key[Array, ""], side: int, decay: Float[Array, ""] | float
) -> Float[Array, "side side"]:
    """Returns a random height map with values from 0 to 1, float32, whose edges wrap around.

    Diamond-square algorithm (Fournier, Fussell and Carpenter 1982): each level doubles the
    resolution; a new point is the mean of its four neighbors plus uniform noise, whose range is
    `decay`^2 times smaller at each level.

    Args:
      key: decides the noise.
      side: a power of two.
      decay: larger values give smoother maps.

    Raises:
      ValueError: if `side` is not a power of two.
    """
    if side & (side - 1) or side < 1:
        raise ValueError(f"side is {side}: expected a power of two")
    heights, scale = jnp.zeros((1, 1), jnp.float32), jnp.float32(1)
    # One call of the random generator, because each takes long to compile.
    u = jax.random.uniform(key, (side**2 - 1,), jnp.float32, -1, 1)
    while (size := heights.shape[0]) < side:
        noise = u[size**2 - 1 : 4 * size**2 - 1].reshape(3, size, size)
        heights = _refine(heights, scale * noise)
        scale = scale / jnp.asarray(decay, jnp.float32) ** 2
    heights = heights - jnp.min(heights)
    return heights / jnp.maximum(jnp.max(heights), 1e-20)


def _refine(heights: Float[Array, "n n"], noise: Float[Array, "3 n n"]) -> Float[Array, "2n 2n"]:
    """Doubles the resolution: the centers of the squares first, then the middles of their edges."""
    below, right = jnp.roll(heights, -1, 0), jnp.roll(heights, -1, 1)
    centers = (heights + below + right + jnp.roll(below, -1, 1)) / 4 + noise[0]
    horizontal = (heights + right + centers + jnp.roll(centers, 1, 0)) / 4 + noise[1]
    vertical = (heights + below + centers + jnp.roll(centers, 1, 1)) / 4 + noise[2]
    side = 2 * heights.shape[0]
    rows = jnp.stack([jnp.stack([heights, horizontal], -1), jnp.stack([vertical, centers], -1)], 1)
    return rows.reshape(side, side)


def fog(
    key: Key[Array, ""],
    image: Num[Array, "h w c"],
    severity: Int[Array, ""] | int,
    levels: Sequence[tuple[float, float]],
) -> Num[Array, "h w c"]:
    """Adds a cloud of the given amount and scales the sum to the image's own maximum.

    Args:
      key: decides the cloud.
      image: one image.
      severity: 1 to 5.
      levels: amounts, and `decay` of `plasma_fractal`.
    """
    height, width = image.shape[:2]
    amount, decay = at_severity(levels, severity)
    side = 1 << (max(height, width) - 1).bit_length()
    cloud = plasma_fractal(key, side, decay)[:height, :width, None]
    x = to_unit(image)
    maximum = jnp.max(x)
    return from_unit((x + amount * cloud) * maximum / (maximum + amount), image.dtype)
