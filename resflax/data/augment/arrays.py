"""Augmentation of arrays of any rank `(*space, channels)`, such as signals: shift, noise, mask."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, Num

from resflax.data.augment.pixels import round_to_dtype


def shift(key: Key[Array, ""], array: Num[Array, "*space c"], *, size: int) -> Array:
    """Rolls one array by up to `size` positions along each spatial axis, in both directions.

    What leaves at one end enters at the other, as suits periodic signals; `pad_crop` fills with
    zeros instead.
    """
    axes = tuple(range(array.ndim - 1))
    return jnp.roll(array, jax.random.randint(key, (len(axes),), -size, size + 1), axes)


def noise(key: Key[Array, ""], array: Num[Array, "*space c"], *, scale: float) -> Array:
    """Adds Gaussian noise with `scale` times the standard deviation of each channel."""
    values = array.astype(jnp.float32)
    std = jnp.std(values, tuple(range(array.ndim - 1)))
    drawn = jax.random.normal(key, array.shape, jnp.float32)
    return round_to_dtype(values + scale * std * drawn, array.dtype)


def mask(key: Key[Array, ""], array: Num[Array, "*space c"], *, size: int) -> Array:
    """Replaces a random box of one array, of `size` along each axis, by the channels' means.

    The box is clipped at the ends, so that every position is equally likely as its center, as in
    cutout (DeVries and Taylor 2017, arXiv:1708.04552).
    """
    space = array.shape[:-1]
    keys = jax.random.split(key, len(space))
    inside = jnp.ones((), bool)
    for axis, length in enumerate(space):
        start = jax.random.randint(keys[axis], (), 0, length) - size // 2
        position = jnp.arange(length)
        along = (position >= start) & (position < start + size)
        inside = inside & jnp.expand_dims(along, [a for a in range(array.ndim) if a != axis])
    mean = jnp.mean(array.astype(jnp.float32), tuple(range(array.ndim - 1)))
    return jnp.where(inside, round_to_dtype(mean, array.dtype), array)
