"""What a pixel is: bytes as they are stored, floats as a network takes them, light and colour."""

from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def normalize(images: Array, *, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
    """`(images / 255 - mean) / std` in float32, by channel (the last axis).

    >>> normalize(jnp.full((1, 1, 1, 1), 255, jnp.uint8), mean=(0.5,), std=(0.25,)).tolist()
    [[[[2.0]]]]
    """
    scale = jnp.asarray(std, jnp.float32)
    return (images.astype(jnp.float32) / 255 - jnp.asarray(mean, jnp.float32)) / scale


def round_to_dtype(x: Array, dtype: Any) -> Array:
    """Float values as `dtype`: for uint8 rounded and held within 0 to 255.

    >>> round_to_dtype(jnp.asarray([-3.0, 1.6, 256.0]), jnp.uint8).tolist()
    [0, 2, 255]
    """
    if jnp.issubdtype(dtype, jnp.integer):
        x = jnp.clip(jnp.round(x), 0, 255)
    return x.astype(dtype)


def has_colour(image: Array) -> bool:
    """Whether the channels of an `(h, w, c)` image are red, green and blue."""
    return image.shape[-1] == 3


def luma(image: Array) -> Array:
    """How light each pixel of a uint8 `(h, w, c)` image is, int32 `(h, w, 1)`, as Pillow's "L".

    ITU-R 601: 0.299 R + 0.587 G + 0.114 B. Where the channels are no colours it is their mean.
    """
    wide = image.astype(jnp.int32)
    if not has_colour(image):
        return jnp.sum(wide, -1, keepdims=True) // image.shape[-1]
    weighted = wide * jnp.asarray([19595, 38470, 7471], jnp.int32)  # of 65,536
    return (jnp.sum(weighted, -1, keepdims=True) + 32768) >> 16
