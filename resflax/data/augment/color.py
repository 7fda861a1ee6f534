"""Color operations on uint8 images of shape `(h, w, c)`.

Each matches Pillow's `ImageOps` or `ImageEnhance` to within one gray level. Hue and
saturation return an image that is not RGB unchanged.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, UInt8

from resflax.data.augment.pixels import is_rgb, luma, round_to_dtype

Scalar = float | Float[Array, ""]


def autocontrast(image: UInt8[Array, "h w c"]) -> UInt8[Array, "h w c"]:
    """Stretches each channel so that its minimum is 0 and its maximum 255."""
    wide = image.astype(jnp.int32)
    low, high = (f(wide, (0, 1), keepdims=True) for f in (jnp.min, jnp.max))
    stretched = (wide - low) * 255 // jnp.maximum(high - low, 1)
    return jnp.where(high > low, stretched, wide).astype(jnp.uint8)


def equalize(image: UInt8[Array, "h w c"]) -> UInt8[Array, "h w c"]:
    """Equalizes the histogram of each channel."""
    return jax.vmap(_equalize_channel, in_axes=-1, out_axes=-1)(image)


def _equalize_channel(channel: UInt8[Array, "h w"]) -> UInt8[Array, "h w"]:
    histogram = jnp.bincount(channel.ravel().astype(jnp.int32), length=256).astype(jnp.int32)
    below = jnp.cumsum(histogram, dtype=jnp.int32) - histogram
    # Pillow does not count the pixels of the largest value.
    step = below[jnp.max(channel).astype(jnp.int32)] // 255
    table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, table[channel.astype(jnp.int32)].astype(jnp.uint8), channel)


def solarize(image: UInt8[Array, "h w c"], threshold: Scalar) -> UInt8[Array, "h w c"]:
    """Inverts all values of at least `threshold`."""
    return jnp.where(image.astype(jnp.float32) >= threshold, 255 - image, image)


def solarize_add(image: UInt8[Array, "h w c"], addend: Scalar) -> UInt8[Array, "h w c"]:
    """Adds a whole number from 0 to 255 to all values below 128."""
    brighter = jnp.minimum(image.astype(jnp.float32) + addend, 255).astype(jnp.uint8)
    return jnp.where(image < 128, brighter, image)


def posterize(image: UInt8[Array, "h w c"], bits: Scalar) -> UInt8[Array, "h w c"]:
    """Keeps the highest `bits` bits of each value, 0 to 8."""
    dropped = 8 - jnp.asarray(bits).astype(jnp.int32)
    return image & (256 - jnp.left_shift(jnp.int32(1), dropped)).astype(jnp.uint8)


def grayscale(image: UInt8[Array, "h w c"]) -> UInt8[Array, "h w c"]:
    """Replaces all channels by the luma, like torchvision's `rgb_to_grayscale(image, 3)`."""
    return jnp.broadcast_to(luma(image), image.shape).astype(image.dtype)


def blend(
    start: Integer[Array, "*#shape"], image: UInt8[Array, "*shape"], factor: Float[Array, ""]
) -> UInt8[Array, "*shape"]:
    """Returns `start + factor * (image - start)`, clipped to 0 to 255 and rounded down.

    A factor above 1 extrapolates.
    """
    a, b = start.astype(jnp.float32), image.astype(jnp.float32)
    return jnp.clip(a + factor * (b - a), 0, 255).astype(jnp.uint8)


def brightness(image: UInt8[Array, "h w c"], factor: Float[Array, ""]) -> UInt8[Array, "h w c"]:
    """Blends from black (factor 0) to the image (factor 1) and beyond."""
    return blend(jnp.zeros_like(image), image, factor)


def contrast(image: UInt8[Array, "h w c"], factor: Float[Array, ""]) -> UInt8[Array, "h w c"]:
    """Blends from the mean luma of the image (factor 0) to the image (factor 1) and beyond."""
    gray = luma(image)
    mean = (2 * jnp.sum(gray, dtype=jnp.int32) + gray.size) // (2 * gray.size)
    return blend(mean, image, factor)


def saturation(image: UInt8[Array, "h w c"], factor: Float[Array, ""]) -> UInt8[Array, "h w c"]:
    """Blends from grayscale (factor 0) to the image (factor 1) and beyond; Pillow's "Color"."""
    return blend(luma(image), image, factor) if is_rgb(image) else image


def sharpness(image: UInt8[Array, "h w c"], factor: Float[Array, ""]) -> UInt8[Array, "h w c"]:
    """Blends from a smoothed image (factor 0) to the image (factor 1) and beyond."""
    return blend(_smooth(image), image, factor)


def _smooth(image: UInt8[Array, "h w c"]) -> Int[Array, "h w c"]:
    """Averages 3x3 pixels with weight 5 at the center; edge pixels stay as they are."""
    height, width, _ = image.shape
    wide = image.astype(jnp.int32)
    padded = jnp.pad(wide, ((1, 1), (1, 1), (0, 0)))
    shifted = [padded[i : i + height, j : j + width] for i in range(3) for j in range(3)]
    rows, columns = (np.isin(np.arange(side), (0, side - 1)) for side in (height, width))
    edge = jnp.asarray((rows[:, None] | columns)[..., None])
    return jnp.where(
        edge, wide, (jnp.sum(jnp.stack(shifted), 0, dtype=jnp.int32) + 4 * wide + 6) // 13
    )


def hue(image: UInt8[Array, "h w c"], shift: Float[Array, ""]) -> UInt8[Array, "h w c"]:
    """Rotates the hue of every pixel by `shift`, a fraction of the color circle.

    Value and saturation stay the same (HSV, Smith 1978). Like torchvision's `adjust_hue`, which
    for Pillow images also rounds the hue to 256 steps.
    """
    if not is_rgb(image):
        return image
    r, g, b = jnp.moveaxis(image.astype(jnp.float32), -1, 0)
    value = jnp.maximum(jnp.maximum(r, g), b)
    chroma = value - jnp.minimum(jnp.minimum(r, g), b)
    divisor = jnp.maximum(chroma, 1.0)
    # The hue in sixths of the circle, from red.
    sextant = jnp.where(
        value == r,
        (g - b) / divisor,
        jnp.where(value == g, 2 + (b - r) / divisor, 4 + (r - g) / divisor),
    )
    phases = jnp.asarray([[[5.0, 3.0, 1.0]]], jnp.float32)
    k = (phases + (sextant + 6 * shift)[..., None]) % 6
    fraction = jnp.clip(jnp.minimum(k, 4 - k), 0, 1)
    return round_to_dtype(value[..., None] - chroma[..., None] * fraction, image.dtype)
