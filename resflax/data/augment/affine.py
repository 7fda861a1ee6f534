"""Affine warps: rotation, shear and translation as a table of coefficients."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

FILL = 128  # gray value of pixels from outside the image, as in the AutoAugment code
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def warp(image: UInt8[Array, "h w c"], matrix: Float[Array, "6"]) -> UInt8[Array, "h w c"]:
    """Applies an affine map `(a, b, c, d, e, f)` to one image, with nearest-neighbor sampling.

    Pillow's `image.transform(size, AFFINE, matrix, fillcolor=gray)`: the output pixel centered at
    (x, y) is the input pixel at (ax + by + c, dx + ey + f), or gray outside the image.
    """
    height, width, channels = image.shape
    a, b, c, d, e, f = matrix
    x = (jnp.arange(width, dtype=jnp.float32) + 0.5)[None]
    y = (jnp.arange(height, dtype=jnp.float32) + 0.5)[:, None]
    column = jnp.floor(a * x + b * y + c).astype(jnp.int32)
    row = jnp.floor(d * x + e * y + f).astype(jnp.int32)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    source = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
    warped = image.reshape(height * width, channels)[source]
    return jnp.where(inside[..., None], warped, jnp.uint8(FILL))


def _rotate(angle: Array, height: int, width: int) -> tuple[Array | float, ...]:
    """Rotates counter-clockwise around the center, by an angle in radians."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y = width / 2, height / 2
    return cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y


# From an argument, height and width to the six coefficients. The argument is an angle in radians, a
# slope, or a number of pixels.
Coefficients = Callable[[Array, int, int], tuple[Array | float, ...]]
WARPS: dict[str, Coefficients] = {
    "rotate": _rotate,
    "shear_x": lambda slope, h, w: (1.0, slope, 0.0, 0.0, 1.0, 0.0),
    "shear_y": lambda slope, h, w: (1.0, 0.0, 0.0, slope, 1.0, 0.0),
    "translate_x": lambda pixels, h, w: (1.0, 0.0, pixels, 0.0, 1.0, 0.0),
    "translate_y": lambda pixels, h, w: (1.0, 0.0, 0.0, 0.0, 1.0, pixels),
}


def warp_matrix(
    name: str, argument: Float[Array, ""], height: int, width: int
) -> Float[Array, "6"]:
    """Returns the map of a row of `WARPS`, float32 `(6,)`; the identity for any other name.

    >>> warp_matrix("translate_x", jnp.float32(-3), 8, 8).tolist()
    [1.0, 0.0, -3.0, 0.0, 1.0, 0.0]
    """
    coefficients = WARPS[name](argument, height, width) if name in WARPS else IDENTITY
    return jnp.stack([jnp.asarray(number, jnp.float32) for number in coefficients])
