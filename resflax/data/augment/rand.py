"""RandAugment: several random operations out of fourteen, all with one magnitude.

Cubuk et al. 2019 (arXiv:1909.13719), section 3.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from resflax.data.augment import color
from resflax.data.augment.affine import WARPS, warp, warp_matrix
from resflax.data.augment.box import uniform_to_int

FULL_MAGNITUDE = 10  # the magnitude of AutoAugment's largest changes


def _factor(strength: float, sign: Array) -> Array:
    """Returns a blend factor: 1 keeps the image, 1 +- 0.9 is AutoAugment's largest change."""
    return jnp.maximum(1 + 0.9 * strength * sign, 0.1)


# From (image, strength, sign) to an image: strength is 1 at AutoAugment's largest change, sign 1
# or -1. A larger strength always changes more, as in torchvision and timm's "increasing" variants;
# in the paper's code it changes less for solarize and posterize.
COLOR_OPS: dict[str, Callable[[Array, float, Array], Array]] = {
    "identity": lambda image, strength, sign: image,
    "autocontrast": lambda image, strength, sign: color.autocontrast(image),
    "equalize": lambda image, strength, sign: color.equalize(image),
    "solarize": lambda image, strength, sign: color.solarize(
        image, max(256 - round(256 * strength), 0)
    ),
    "color": lambda image, strength, sign: color.saturation(image, _factor(strength, sign)),
    "posterize": lambda image, strength, sign: color.posterize(
        image, max(8 - round(4 * strength), 1)
    ),
    "contrast": lambda image, strength, sign: color.contrast(image, _factor(strength, sign)),
    "brightness": lambda image, strength, sign: color.brightness(image, _factor(strength, sign)),
    "sharpness": lambda image, strength, sign: color.sharpness(image, _factor(strength, sign)),
}
OPS = (*COLOR_OPS, *WARPS)


def apply_op(
    image: UInt8[Array, "h w c"], op: Int[Array, ""], sign: Float[Array, ""], *, magnitude: float
) -> UInt8[Array, "h w c"]:
    """Applies one operation to one image.

    Args:
      image: image of any size.
      op: position in `OPS`, an int32 scalar.
      sign: 1 or -1, a float32 scalar: the direction of the change.
      magnitude: 10 for AutoAugment's largest change; larger values extrapolate.
    """
    strength, size = magnitude / FULL_MAGNITUDE, image.shape[:2]
    # Under `vmap` every branch is computed for every image. The five warps are therefore one
    # resampling with five matrices; for other operations it runs with the identity.
    matrices = jnp.stack([warp_matrix(name, strength * sign, *size) for name in OPS])
    image = warp(image, matrices[op])
    branches = [lambda x, sign, run=run: run(x, strength, sign) for run in COLOR_OPS.values()]
    branch = np.array([i if name in COLOR_OPS else 0 for i, name in enumerate(OPS)], np.int32)
    return jax.lax.switch(jnp.asarray(branch)[op], branches, image, sign)


def sample_op(key: Key[Array, ""]) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """Samples the `op` and `sign` arguments of `apply_op`, uniformly."""
    u = jax.random.uniform(key, (2,), jnp.float32)
    return uniform_to_int(u[0], len(OPS)), jnp.where(u[1] < 0.5, -1.0, 1.0).astype(jnp.float32)


def rand_augment(
    key: Key[Array, ""], image: UInt8[Array, "h w c"], *, layers: int, magnitude: float
) -> UInt8[Array, "h w c"]:
    """Applies `layers` independently sampled operations of `OPS` to one image.

    Args:
      key: a key for this image.
      image: image of any size.
      layers: the paper's N.
      magnitude: the paper's M, from 0 to 30, where 10 is AutoAugment's largest change.
    """

    def layer(x: Array, key: Array) -> tuple[Array, None]:
        return apply_op(x, *sample_op(key), magnitude=magnitude), None

    return jax.lax.scan(layer, image, jax.random.split(key, layers))[0]
