"""Gaussian blur with a standard deviation that is a traced value."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from resflax.data.augment.pixels import round_to_dtype

RADIUS = 11  # of the kernel, in pixels: 23 x 23 as in timm, for standard deviations up to 2


def gaussian_blur(image: UInt8[Array, "h w c"], std: Float[Array, ""]) -> UInt8[Array, "h w c"]:
    """Convolves one image with a Gaussian of standard deviation `std` in pixels, above 0.

    torchvision's `gaussian_blur(image, 23, std)`, with edges reflected. Pillow's `GaussianBlur`
    approximates it by three box filters.
    """
    offsets = jnp.arange(-RADIUS, RADIUS + 1, dtype=jnp.float32)
    weights = jnp.exp(-0.5 * (offsets / std) ** 2)
    weights = weights / jnp.sum(weights)
    height, width, _ = image.shape
    padding = ((RADIUS, RADIUS), (RADIUS, RADIUS), (0, 0))
    padded = jnp.pad(image.astype(jnp.float32), padding, mode="reflect")
    taps = range(2 * RADIUS + 1)
    rows = sum((weights[i] * padded[i : i + height] for i in taps), jnp.float32(0))
    both = sum((weights[i] * rows[:, i : i + width] for i in taps), jnp.float32(0))
    return round_to_dtype(both, image.dtype)
