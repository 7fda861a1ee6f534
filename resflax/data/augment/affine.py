"""What moves pixels by an affine map: rotation, shear and translation as rows of one table."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array

GREY = 128  # what comes in from beyond the edges, as in the paper's code
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)

# AutoAugment's largest (Cubuk et al. 2018, arXiv:1805.09501, table 6), of which translation is 150
# pixels of ImageNet's 331.
ROTATION, SHEAR, TRANSLATION = math.radians(30), 0.3, 150 / 331


def warp(image: Array, matrix: Array) -> Array:
    """One uint8 `(h, w, c)` image through an affine map, `matrix` float32 `(6,)`, nearest pixel.

    Pillow's `image.transform(size, AFFINE, matrix, fillcolor=grey)`: the output pixel whose middle
    is (x, y) is that at (ax + by + c, dx + ey + f) of the input, or grey beyond its edges.
    """
    height, width, channels = image.shape
    a, b, c, d, e, f = matrix
    x = jnp.arange(width, dtype=jnp.float32) + 0.5
    y = (jnp.arange(height, dtype=jnp.float32) + 0.5)[:, None]
    column = jnp.floor(a * x + b * y + c).astype(jnp.int32)
    row = jnp.floor(d * x + e * y + f).astype(jnp.int32)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    place = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
    moved = image.reshape(height * width, channels)[place]
    return jnp.where(inside[..., None], moved, jnp.uint8(GREY))


def _rotate(amount: Array, height: int, width: int) -> tuple[Array | float, ...]:
    """Counter-clockwise around the middle."""
    cos, sin = jnp.cos(ROTATION * amount), jnp.sin(ROTATION * amount)
    x, y = width / 2, height / 2
    return cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y


Row = Callable[[Array, int, int], tuple[Array | float, ...]]
# From an amount, 1 for AutoAugment's largest, and height and width to the map's six numbers.
WARPS: dict[str, Row] = {
    "rotate": _rotate,
    "shear_x": lambda amount, h, w: (1.0, SHEAR * amount, 0.0, 0.0, 1.0, 0.0),
    "shear_y": lambda amount, h, w: (1.0, 0.0, 0.0, SHEAR * amount, 1.0, 0.0),
    "translate_x": lambda amount, h, w: (1.0, 0.0, TRANSLATION * w * amount, 0.0, 1.0, 0.0),
    "translate_y": lambda amount, h, w: (1.0, 0.0, 0.0, 0.0, 1.0, TRANSLATION * h * amount),
}


def matrix_of(name: str, amount: Array, height: int, width: int) -> Array:
    """The map of that name, float32 `(6,)`; that of no row of `WARPS` moves nothing.

    >>> matrix_of("translate_x", jnp.float32(-1), 8, 331).tolist()
    [1.0, 0.0, -150.0, 0.0, 1.0, 0.0]
    """
    row = WARPS[name](amount, height, width) if name in WARPS else IDENTITY
    return jnp.stack([jnp.asarray(number, jnp.float32) for number in row])
