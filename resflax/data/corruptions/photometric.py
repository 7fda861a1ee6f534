"""Brightness, contrast and saturation.

Hendrycks and Dietterich 2019 (arXiv:1903.12261), section 3; `levels` has the parameters of the five
severities, for values from 0 to 1. Hue, saturation and value are those of HSV (Smith 1978).
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Int, Key, Num

from resflax.data.augment.pixels import is_rgb
from resflax.data.corruptions.pixels import at_severity, from_unit, to_unit


def brightness(
    key: Key[Array, ""],
    image: Num[Array, "h w c"],
    severity: Int[Array, ""] | int,
    levels: Sequence[float],
) -> Num[Array, "h w c"]:
    """Adds `levels` to the value of each pixel, at equal hue and saturation; no `key` is used."""
    x = to_unit(image)
    value = jnp.max(x, -1, keepdims=True)
    brighter = jnp.clip(value + at_severity(levels, severity), 0, 1)
    # All channels are proportional to the value. A black pixel becomes gray.
    scaled = x * (brighter / jnp.where(value > 0, value, 1))
    return from_unit(jnp.where(value > 0, scaled, brighter), image.dtype)


def contrast(
    key: Key[Array, ""],
    image: Num[Array, "h w c"],
    severity: Int[Array, ""] | int,
    levels: Sequence[float],
) -> Num[Array, "h w c"]:
    """Multiplies the difference to each channel's mean by `levels`; no `key` is used."""
    x = to_unit(image)
    mean = jnp.mean(x, (0, 1))
    return from_unit((x - mean) * at_severity(levels, severity) + mean, image.dtype)


def saturate(
    key: Key[Array, ""],
    image: Num[Array, "h w c"],
    severity: Int[Array, ""] | int,
    levels: Sequence[tuple[float, float]],
) -> Num[Array, "h w c"]:
    """Changes the saturation of each pixel to `factor * saturation + offset`, clipped to 0 to 1.

    A gray pixel has no hue; as in the paper's code, it gets the hue of red where the offset is not
    zero. An image that is not RGB is returned unchanged.

    Args:
      key: unused.
      image: one image.
      severity: 1 to 5; severities 1 and 2 decrease the saturation.
      levels: factors and offsets.
    """
    if not is_rgb(image):
        return image
    x = to_unit(image)
    factor, offset = at_severity(levels, severity)
    value = jnp.max(x, -1, keepdims=True)
    chroma = value - jnp.min(x, -1, keepdims=True)
    saturation = chroma / jnp.where(value > 0, value, 1)
    changed = jnp.clip(factor * saturation + offset, 0, 1)
    # How far each channel is below the value, in units of the saturation; of red if gray.
    below = jnp.where(
        chroma > 0,
        (value - x) / jnp.where(chroma > 0, saturation, 1),
        value * jnp.asarray([0.0, 1, 1]),
    )
    return from_unit(value - changed * below, image.dtype)
