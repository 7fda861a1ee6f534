"""Cutout and random erasing."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, Num, UInt8

from resflax.data.augment.box import Box, box_mask, sample_box, sample_centered_box

AREA, RATIO = (0.02, 0.4), (0.3, 1 / 0.3)


def erase(image: Num[Array, "h w c"], box: Box, value: Num[Array, "..."]) -> Num[Array, "h w c"]:
    """Replaces the pixels of one image inside a box by `value`, which is broadcast."""
    return jnp.where(box_mask(box, *image.shape[:2]), value, image)


def cutout(key: Key[Array, ""], image: Num[Array, "h w c"], *, size: int) -> Num[Array, "h w c"]:
    """Sets a square of `size` pixels around a random pixel of one image to zero.

    The square is clipped at the edges, so that every pixel is equally likely as its center.
    DeVries and Taylor 2017 (arXiv:1708.04552), section 3. Their zero is applied after
    normalization and is the dataset mean; here it is applied to stored pixels and is black.
    """
    side = jnp.int32(size)
    box = sample_centered_box(key, image.shape, side, side)
    return erase(image, box, jnp.zeros_like(image))


def random_erasing(
    key: Key[Array, ""], image: UInt8[Array, "h w c"], *, probability: float
) -> UInt8[Array, "h w c"]:
    """Replaces a random box of one image by uniform noise, with the given probability.

    The box covers 2% to 40% of the image, with an aspect ratio of 0.3 to 1/0.3; every value in it
    is drawn from 0 to 255. Zhong et al. 2017 (arXiv:1708.04896), algorithm 1, with a log-uniform
    ratio as in torchvision and timm, and at most ten attempts.
    """
    apply_key, box_key, noise_key = jax.random.split(key, 3)
    fits, box = sample_box(box_key, image.shape, area=AREA, ratio=RATIO, fallback=(0, 0))
    noise = jax.random.bits(noise_key, image.shape, jnp.uint8).astype(image.dtype)
    apply = fits & jax.random.bernoulli(apply_key, probability)
    return jnp.where(apply, erase(image, box, noise), image)
