"""Color changes of an image with a probability: gray, blurred, solarized."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, UInt8

from resflax.data.augment.blur import gaussian_blur
from resflax.data.augment.color import grayscale, solarize

BLUR_STD = (0.1, 2.0)  # in pixels, as in SimCLR (Chen et al. 2020, arXiv:2002.05709, appendix A)
SOLARIZE_THRESHOLD = 128


def _with_probability(
    key: Key[Array, ""], image: Array, probability: float, run: Callable[[Array], Array]
) -> Array:
    return jnp.where(jax.random.bernoulli(key, probability), run(image), image)


def random_grayscale(
    key: Key[Array, ""], image: UInt8[Array, "h w c"], *, probability: float
) -> UInt8[Array, "h w c"]:
    """Makes an image gray with the given probability."""
    return _with_probability(key, image, probability, grayscale)


def random_blur(
    key: Key[Array, ""], image: UInt8[Array, "h w c"], *, probability: float
) -> UInt8[Array, "h w c"]:
    """Blurs an image with the given probability; the standard deviation is uniform, `BLUR_STD`."""
    apply_key, std_key = jax.random.split(key)
    std = jax.random.uniform(std_key, (), jnp.float32, *BLUR_STD)
    return _with_probability(apply_key, image, probability, lambda x: gaussian_blur(x, std))


def random_solarize(
    key: Key[Array, ""], image: UInt8[Array, "h w c"], *, probability: float
) -> UInt8[Array, "h w c"]:
    """Inverts the values of at least 128 of an image, with the given probability."""
    return _with_probability(key, image, probability, lambda x: solarize(x, SOLARIZE_THRESHOLD))
