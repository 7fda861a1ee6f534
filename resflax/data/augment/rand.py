"""RandAugment: a few of fourteen operations in a row, all of one magnitude.

Cubuk et al. 2019 (arXiv:1909.13719), section 3.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from resflax.data.augment import color as tone
from resflax.data.augment.affine import WARPS, matrix_of, warp
from resflax.data.augment.chance import one_of

Array = jax.Array

LARGEST = 10  # the magnitude of AutoAugment's largest changes


def _factor(strength: float, sign: Array) -> Array:
    """Of a blend: 1 for the image as it is, at most 0.9 away from it at AutoAugment's largest."""
    return jnp.maximum(1 + 0.9 * strength * sign, 0.1)


# From (image, strength, sign) to an image: strength is 1 at AutoAugment's largest, sign 1 or -1. A
# larger strength always changes more, as in torchvision and in timm's "increasing" forms; in the
# paper's code a solarised or posterised image was changed less.
TONES: dict[str, Callable[[Array, float, Array], Array]] = {
    "identity": lambda image, strength, sign: image,
    "autocontrast": lambda image, strength, sign: tone.autocontrast(image),
    "equalize": lambda image, strength, sign: tone.equalize(image),
    "solarize": lambda image, strength, sign: tone.solarize(
        image, max(256 - round(256 * strength), 0)
    ),
    "color": lambda image, strength, sign: tone.saturation(image, _factor(strength, sign)),
    "posterize": lambda image, strength, sign: tone.posterize(
        image, max(8 - round(4 * strength), 1)
    ),
    "contrast": lambda image, strength, sign: tone.contrast(image, _factor(strength, sign)),
    "brightness": lambda image, strength, sign: tone.brightness(image, _factor(strength, sign)),
    "sharpness": lambda image, strength, sign: tone.sharpness(image, _factor(strength, sign)),
}
OPS = (*TONES, *WARPS)


def rand_op(image: Array, number: Array, sign: Array, *, magnitude: float) -> Array:
    """One operation on one uint8 `(h, w, c)` image.

    Args:
      image: of any size.
      number: which of `OPS`, an int32 scalar.
      sign: 1 or -1, a float32 scalar: to which side.
      magnitude: 10 for AutoAugment's largest; beyond it goes on.
    """
    strength, size = magnitude / LARGEST, image.shape[:2]
    # Under `vmap` every branch is computed for every image. So the five that move pixels are one
    # resampling with five maps, of which the identity's costs what each of them does.
    matrices = jnp.stack([matrix_of(name, strength * sign, *size) for name in OPS])
    image = warp(image, matrices[number])
    branches = [lambda x, sign, run=run: run(x, strength, sign) for run in TONES.values()]
    which = np.array([i if name in TONES else 0 for i, name in enumerate(OPS)], np.int32)
    return jax.lax.switch(jnp.asarray(which)[number], branches, image, sign)


def draw_op(key: Array) -> tuple[Array, Array]:
    """Which of `OPS` and to which side, as `rand_op` takes them: all as likely."""
    u = jax.random.uniform(key, (2,), jnp.float32)
    return one_of(u[0], len(OPS)), jnp.where(u[1] < 0.5, -1.0, 1.0).astype(jnp.float32)


def rand_augment(key: Array, image: Array, *, layers: int, magnitude: float) -> Array:
    """`layers` operations of `OPS`, each drawn anew, on one uint8 `(h, w, c)` image.

    Args:
      key: of this image.
      image: of any size.
      layers: the paper's N.
      magnitude: the paper's M, from 0 to 30, where 10 is AutoAugment's largest.
    """

    def layer(x: Array, key: Array) -> tuple[Array, None]:
        return rand_op(x, *draw_op(key), magnitude=magnitude), None

    return jax.lax.scan(layer, image, jax.random.split(key, layers))[0]
