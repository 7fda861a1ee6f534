"""Pixel formats: normalization, rounding to uint8, and luma."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Num, UInt8


def normalize(
    images: Num[Array, "*batch channels"], *, mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "*batch channels"]:
    """Returns `(images / 255 - mean) / std` in float32, per channel (the last axis).

    Floating-point arrays, which are not pixels, are not divided by 255.

    >>> normalize(jnp.full((1, 1, 1, 1), 255, jnp.uint8), mean=(0.5,), std=(0.25,)).tolist()
    [[[[2.0]]]]
    """
    center, scale = (
        lax.broadcast_to_rank(jnp.asarray(numbers, jnp.float32), images.ndim)
        for numbers in (mean, std)
    )
    is_float = jnp.issubdtype(images.dtype, jnp.floating)
    values = images.astype(jnp.float32) if is_float else images.astype(jnp.float32) / 255
    return (values - center) / scale


def round_to_dtype(x: Float[Array, "*shape"], dtype: Any) -> Num[Array, "*shape"]:
    """Casts to `dtype`; for an integer dtype, rounds and clips to 0 to 255 first.

    >>> round_to_dtype(jnp.asarray([-3.0, 1.6, 256.0]), jnp.uint8).tolist()
    [0, 2, 255]
    """
    if jnp.issubdtype(dtype, jnp.integer):
        x = jnp.clip(jnp.round(x), 0, 255)
    return x.astype(dtype)


def is_rgb(image: Num[Array, "h w c"]) -> bool:
    """Returns whether an image has three channels, which are taken as red, green and blue."""
    return image.shape[-1] == 3


def luma(image: UInt8[Array, "h w c"]) -> Int[Array, "h w 1"]:
    """Returns the luma of each pixel, int32, like Pillow's mode "L".

    ITU-R 601: 0.299 R + 0.587 G + 0.114 B. If the image is not RGB, the mean of its channels.
    """
    wide = image.astype(jnp.int32)
    if not is_rgb(image):
        return jnp.sum(wide, -1, keepdims=True, dtype=jnp.int32) // image.shape[-1]
    # Fixed point, in units of 2^-16. With an array of weights, `vmap` of a `switch` fails in JAX
    # 0.10 under `shard_map`.
    red, green, blue = (wide[..., i : i + 1] for i in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
