"""Blur: Gaussian, defocus (a disk) and motion (half a Gaussian along a line).

Hendrycks and Dietterich 2019 (arXiv:1903.12261), section 3; `levels` has the parameters of the five
severities, lengths in pixels.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num

from resflax.data.augment.pixels import round_to_dtype
from resflax.data.corruptions import filters
from resflax.data.corruptions.pixels import at_severity, from_unit, to_unit

MAX_ANGLE = math.radians(45)  # of motion, to the horizontal


def gaussian_blur(
    key: Key[Array, ""],
    image: Num[Array, "h w c"],
    severity: Int[Array, ""] | int,
    levels: Sequence[float],
) -> Num[Array, "h w c"]:
    """Applies a Gaussian filter, truncated at 4 standard deviations; does not use `key`.

    Args:
      key: unused.
      image: one image.
      severity: 1 to 5.
      levels: standard deviations.
    """
    x = to_unit(image)
    rows, columns = (
        [
            filters.gaussian_matrix(side, sigma, border=filters.nearest, truncate=4.0)
            for sigma in levels
        ]
        for side in image.shape[:2]
    )
    x = filters.filter_rows(filters.select(rows, severity), x)
    x = filters.filter_columns(filters.select(columns, severity), x)
    return from_unit(x, image.dtype)


def disk(radius: float, alias_blur: float) -> Float[np.ndarray, "side side"]:
    """Returns a disk with the sum 1 whose edge is smoothed by a Gaussian, without zeros around it.

    Args:
      radius: of the disk, in pixels.
      alias_blur: standard deviation of the Gaussian, of 3 pixels if `radius` is at most 8, else 5.
    """
    reach = max(8, math.ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    aliased = (x**2 + y**2 <= radius**2).astype(np.float64)
    side, taps = 2 * reach + 1, 3 if radius <= 8 else 5
    smooth = np.zeros((side, side))
    for tap, weight in enumerate(filters.gaussian_taps(taps, alias_blur)):
        columns = filters.mirror(np.arange(side) + tap - taps // 2, side)
        np.add.at(smooth, (np.arange(side), columns), weight)
    kernel = smooth @ (aliased / aliased.sum()) @ smooth.T
    while kernel.shape[0] > 1 and not kernel[0].any():  # symmetric
        kernel = kernel[1:-1, 1:-1]
    return kernel


def defocus_blur(
    key: Key[Array, ""],
    image: Num[Array, "h w c"],
    severity: Int[Array, ""] | int,
    levels: Sequence[tuple[float, float]],
) -> Num[Array, "h w c"]:
    """Applies a disk; `levels` are the arguments of `disk`; does not use `key`."""
    kernels = [disk(*level) for level in levels]
    reach = max(kernel.shape[0] for kernel in kernels) // 2
    centered = [np.pad(kernel, reach - kernel.shape[0] // 2) for kernel in kernels]
    rows, columns = (
        filters.mirror(np.arange(-reach, side + reach), side) for side in image.shape[:2]
    )
    padded = jnp.moveaxis(to_unit(image)[rows][:, columns], -1, 0)[..., None]
    blurred = jax.lax.conv_general_dilated(
        padded,
        filters.select(centered, severity)[..., None, None],
        window_strides=(1, 1),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )
    return from_unit(jnp.moveaxis(blurred[..., 0], 0, -1), image.dtype)


def motion_blur(
    key: Key[Array, ""],
    image: Num[Array, "h w c"],
    severity: Int[Array, ""] | int,
    levels: Sequence[tuple[int, float]],
) -> Num[Array, "h w c"]:
    """Averages the image over a movement at a random angle of up to 45 degrees.

    ImageMagick's motion blur: pixel i of a line of 2 `radius` + 1 pixels has the weight
    exp(-i^2 / (2 `sigma`^2)), i = 0 for the pixel itself, and pixels of the line are rounded to
    whole ones.

    Args:
      key: decides the angle.
      image: one image.
      severity: 1 to 5.
      levels: `radius` and `sigma`.
    """
    angle = jax.random.uniform(key, (), jnp.float32, -MAX_ANGLE, MAX_ANGLE)
    taps = 2 * max(radius for radius, _ in levels) + 1
    radius, sigma = at_severity(levels, severity)
    distance = jnp.arange(taps, dtype=jnp.float32)
    weights = jnp.where(distance < 2 * radius + 1, jnp.exp(-(distance**2) / (2 * sigma**2)), 0)
    weights = weights / jnp.sum(weights)
    down, right = (
        jnp.ceil(distance * part - 0.5).astype(jnp.int32)
        for part in (jnp.sin(angle), jnp.cos(angle))
    )
    padded = jnp.pad(image.astype(jnp.float32), ((taps, taps), (0, taps), (0, 0)), mode="edge")

    def add(i: Array, total: Array) -> Array:
        start = (taps + down[i], right[i], jnp.int32(0))
        return total + weights[i] * jax.lax.dynamic_slice(padded, start, image.shape)

    total = jax.lax.fori_loop(0, taps, add, jnp.zeros(image.shape, jnp.float32))
    return round_to_dtype(total, image.dtype)
