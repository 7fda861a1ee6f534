"""Noise: Gaussian, shot and impulse.

Hendrycks and Dietterich 2019 (arXiv:1903.12261), section 3; `levels` has the parameters of the five
severities. Each value of each channel is changed independently.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num

from resflax.data.corruptions import filters
from resflax.data.corruptions.pixels import at_severity, from_unit, to_unit


def gaussian_noise(
    key: Key[Array, ""],
    image: Num[Array, "h w c"],
    severity: Int[Array, ""] | int,
    levels: Sequence[float],
) -> Num[Array, "h w c"]:
    """Adds Gaussian noise; `levels` are standard deviations of values from 0 to 1."""
    noise = jax.random.normal(key, image.shape, jnp.float32)
    return from_unit(to_unit(image) + at_severity(levels, severity) * noise, image.dtype)


def shot_noise(
    key: Key[Array, ""],
    image: Num[Array, "h w c"],
    severity: Int[Array, ""] | int,
    levels: Sequence[float],
) -> Num[Array, "h w c"]:
    """Draws every value from a Poisson distribution; `levels` are the photons of a white pixel.

    The number of photons is found in the cumulative distribution of each gray level, which is much
    faster than `jax.random.poisson`. Values of a floating-point image are rounded first.
    """
    cdfs = filters.select([poisson_cdfs(photons) for photons in levels], severity, fill=1.0)
    gray = jnp.clip(jnp.round(image.astype(jnp.float32)), 0, 255).astype(jnp.int32)
    u = jax.random.uniform(key, image.shape, jnp.float32)
    counts, step = jnp.zeros_like(gray), 1 << cdfs.shape[1].bit_length()
    while step := step // 2:  # binary search for the first count whose distribution exceeds u
        last = counts + step - 1
        below = (last < cdfs.shape[1]) & (cdfs[gray, jnp.minimum(last, cdfs.shape[1] - 1)] <= u)
        counts = counts + jnp.where(below, step, 0)
    return from_unit(counts.astype(jnp.float32) / at_severity(levels, severity), image.dtype)


def poisson_cdfs(photons: float) -> Float[np.ndarray, "256 counts"]:
    """Returns the cumulative Poisson distribution of each gray level, until it rounds to 1.

    Args:
      photons: the mean of gray level 255, in proportion to which the others are.
    """
    counts = np.arange(int(photons + 8 * math.sqrt(photons) + 16))
    log_factorial = np.cumsum(np.log(np.maximum(counts, 1)))
    mean = photons * np.arange(256)[:, None] / 255
    log_mean = np.log(np.maximum(mean, 1e-30))
    return np.minimum(np.cumsum(np.exp(counts * log_mean - mean - log_factorial), 1), 1.0)


def impulse_noise(
    key: Key[Array, ""],
    image: Num[Array, "h w c"],
    severity: Int[Array, ""] | int,
    levels: Sequence[float],
) -> Num[Array, "h w c"]:
    """Sets values to 0 or 255, either equally likely; `levels` are the probabilities of both."""
    u, amount = jax.random.uniform(key, image.shape, jnp.float32), at_severity(levels, severity)
    x = to_unit(image)
    return from_unit(jnp.where(u < amount, (u < amount / 2).astype(x.dtype), x), image.dtype)
