"""Pure functions from stored images to network input, under `jit` and `vmap`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array
Augment = Callable[[Array, Array], Array]


def normalize(images: Array, *, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
    """`(images / 255 - mean) / std` in float32, by channel (the last axis).

    >>> normalize(jnp.full((1, 1, 1, 1), 255, jnp.uint8), mean=(0.5,), std=(0.25,)).tolist()
    [[[[2.0]]]]
    """
    scale = jnp.asarray(std, jnp.float32)
    return (images.astype(jnp.float32) / 255 - jnp.asarray(mean, jnp.float32)) / scale


def pad_crop(key: Array, image: Array, *, padding: int) -> Array:
    """Pads one `(h, w, c)` image with zeros on each side and crops it back at a random place.

    He et al. 2015, section 4.2, with `padding=4`.
    """
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    row, column = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return jax.lax.dynamic_slice(padded, (row, column, jnp.zeros_like(row)), image.shape)


def flip(key: Array, image: Array) -> Array:
    """Mirrors one `(h, w, c)` image left to right, every other time."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def make_augment(*, padding: int = 0, mirror: bool = False) -> Augment | None:
    """Random crop and flip of a batch, `(keys, images) -> images`; None if there is nothing to do.

    One key an example: what happens to an image does not depend on its neighbours.
    """
    if not padding and not mirror:
        return None

    def one(key: Array, image: Array) -> Array:
        crop_key, flip_key = jax.random.split(key)
        image = pad_crop(crop_key, image, padding=padding) if padding else image
        return flip(flip_key, image) if mirror else image

    return jax.vmap(one)
