"""What changes the values of pixels and not their places, on uint8 `(h, w, c)` images.

Each as Pillow's `ImageOps` and `ImageEnhance` define it, to the rounding of one grey level. What
needs colour leaves an image that has none alone.
"""

import jax
import jax.numpy as jnp
import numpy as np

from resflax.data.augment.pixels import has_colour, luma, round_to_dtype

Array = jax.Array


def autocontrast(image: Array) -> Array:
    """Each channel stretched so that its darkest value is 0 and its lightest 255."""
    wide = image.astype(jnp.int32)
    low, high = jnp.min(wide, (0, 1)), jnp.max(wide, (0, 1))
    stretched = (wide - low) * 255 // jnp.maximum(high - low, 1)
    return jnp.where(high > low, stretched, wide).astype(jnp.uint8)


def equalize(image: Array) -> Array:
    """Each channel mapped so that its values are spread as evenly as they can be."""
    return jax.vmap(_equalize, in_axes=-1, out_axes=-1)(image)


def _equalize(channel: Array) -> Array:
    count = jnp.bincount(channel.ravel().astype(jnp.int32), length=256)
    before = jnp.cumsum(count) - count
    # Pillow leaves the pixels of the last value out of the count.
    step = before[jnp.max(channel).astype(jnp.int32)] // 255
    table = jnp.minimum((step // 2 + before) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, table[channel.astype(jnp.int32)].astype(jnp.uint8), channel)


def solarize(image: Array, threshold: int) -> Array:
    """Every value from `threshold` on turned to its negative."""
    return jnp.where(image.astype(jnp.int32) >= threshold, 255 - image, image)


def posterize(image: Array, bits: int) -> Array:
    """The highest `bits` bits of every value, from 1 to 8."""
    return image & jnp.uint8(256 - 2 ** (8 - bits))


def blend(start: Array, image: Array, factor: Array) -> Array:
    """`start + factor * (image - start)`, within 0 to 255, rounded down; beyond 1 it goes on."""
    a, b = start.astype(jnp.float32), image.astype(jnp.float32)
    return jnp.clip(a + factor * (b - a), 0, 255).astype(jnp.uint8)


def brightness(image: Array, factor: Array) -> Array:
    """From black (0) to the image (1) and beyond."""
    return blend(jnp.zeros_like(image), image, factor)


def contrast(image: Array, factor: Array) -> Array:
    """From the image's mean grey (0) to the image (1) and beyond."""
    light = luma(image)
    mean = (2 * jnp.sum(light) + light.size) // (2 * light.size)
    return blend(mean, image, factor)


def saturation(image: Array, factor: Array) -> Array:
    """From the grey image (0) to the image (1) and beyond; Pillow's "Color"."""
    return blend(luma(image), image, factor) if has_colour(image) else image


def sharpness(image: Array, factor: Array) -> Array:
    """From the smoothed image (0) to the image (1) and beyond."""
    return blend(_smooth(image), image, factor)


def _smooth(image: Array) -> Array:
    """The mean of 3x3 pixels, the middle counted five times; at the edges the image itself."""
    height, width, _ = image.shape
    wide = image.astype(jnp.int32)
    padded = jnp.pad(wide, ((1, 1), (1, 1), (0, 0)))
    nine = [padded[i : i + height, j : j + width] for i in range(3) for j in range(3)]
    rows, columns = (np.isin(np.arange(side), (0, side - 1)) for side in (height, width))
    edge = jnp.asarray((rows[:, None] | columns)[..., None])
    return jnp.where(edge, wide, (jnp.sum(jnp.stack(nine), 0) + 4 * wide + 6) // 13)


def hue(image: Array, shift: Array) -> Array:
    """Every colour turned by `shift` of the whole circle, its value and saturation kept.

    In the cone of hue, saturation and value (Smith 1978), as torchvision's `adjust_hue`, which
    for Pillow's images rounds the hue to 256 steps and here does not.
    """
    if not has_colour(image):
        return image
    r, g, b = jnp.moveaxis(image.astype(jnp.float32), -1, 0)
    value = jnp.maximum(jnp.maximum(r, g), b)
    chroma = value - jnp.minimum(jnp.minimum(r, g), b)
    by = jnp.maximum(chroma, 1.0)
    # In sixths of the circle, from red.
    sixth = jnp.where(
        value == r, (g - b) / by, jnp.where(value == g, 2 + (b - r) / by, 4 + (r - g) / by)
    )
    k = (jnp.asarray([5.0, 3.0, 1.0]) + (sixth + 6 * shift)[..., None]) % 6
    share = jnp.clip(jnp.minimum(k, 4 - k), 0, 1)
    return round_to_dtype(value[..., None] - chroma[..., None] * share, image.dtype)
