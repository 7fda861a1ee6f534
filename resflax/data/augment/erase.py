"""A part of the image taken away."""

import jax
import jax.numpy as jnp

from resflax.data.augment.box import Box, centred_anywhere, draw_box, inside

Array = jax.Array

AREA, RATIO = (0.02, 0.4), (0.3, 1 / 0.3)


def erase(image: Array, box: Box, filling: Array) -> Array:
    """One `(h, w, c)` image with `filling`, of any shape that broadcasts, where the box lies."""
    return jnp.where(inside(box, *image.shape[:2]), filling, image)


def cutout(key: Array, image: Array, *, size: int) -> Array:
    """One `(h, w, c)` image with zeros in a square of `size` pixels around a random pixel.

    What would lie over the edges is cut off, so that every pixel is the middle as often. DeVries
    and Taylor 2017 (arXiv:1708.04552), section 3; their zero is that of normalised images, the
    dataset's mean, and this is that of stored ones, black.
    """
    side = jnp.int32(size)
    box = centred_anywhere(key, image.shape, side, side)
    return erase(image, box, jnp.zeros_like(image))


def random_erasing(key: Array, image: Array, *, probability: float) -> Array:
    """One uint8 `(h, w, c)` image, with that probability with a box of it made noise.

    The box is 2% to 40% of the image at a ratio of 0.3 to 1/0.3, and lies inside; each value in it
    is drawn anew from 0 to 255. Zhong et al. 2017 (arXiv:1708.04896), algorithm 1, with the ratio
    log-uniform as in torchvision and timm, and no more than ten tries.
    """
    coin_key, box_key, noise_key = jax.random.split(key, 3)
    fits, box = draw_box(box_key, image.shape, area=AREA, ratio=RATIO, otherwise=(0, 0))
    noise = jax.random.bits(noise_key, image.shape, jnp.uint8).astype(image.dtype)
    yes = fits & jax.random.bernoulli(coin_key, probability)
    return jnp.where(yes, erase(image, box, noise), image)
