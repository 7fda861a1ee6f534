"""Pixel values from 0 to 1, and the parameters of a severity."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

# Much more than the rounding error of float32 arithmetic, much less than a gray level.
ROUNDING = 1e-3


def to_unit(image: Num[Array, "h w c"]) -> Float[Array, "h w c"]:
    """Returns pixel values from 0 to 1, float32; `image` has values from 0 to 255."""
    return image.astype(jnp.float32) / 255


def from_unit(x: Float[Array, "h w c"], dtype: Any) -> Num[Array, "h w c"]:
    """Clips to 0 to 1 and returns values from 0 to 255; for an integer dtype, rounded down.

    Rounding down is what the code of CIFAR-10-C and ImageNet-C does (`np.uint8(x)`).

    >>> from_unit(to_unit(jnp.asarray([[[0, 37, 255]]], jnp.uint8)), jnp.uint8).tolist()
    [[[0, 37, 255]]]
    """
    x = jnp.clip(x, 0, 1) * 255
    if jnp.issubdtype(dtype, jnp.integer):
        x = jnp.floor(x + ROUNDING)
    return x.astype(dtype)


def at_severity(levels: Sequence[Any], severity: Int[Array, ""] | int) -> Float[Array, "..."]:
    """Returns the float32 parameters of a severity, which may be traced; the first one is 1.

    >>> float(at_severity((0.1, 0.2, 0.3, 0.4, 0.5), 2))
    0.20000000298023224
    """
    return jnp.asarray(levels, jnp.float32)[jnp.asarray(severity, jnp.int32) - 1]
