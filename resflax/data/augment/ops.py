"""Image operations of the augmentation policies, as a table: `(image, argument) -> image`.

Which argument an operation gets at which magnitude is in `levels.py`.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from resflax.data.augment import color
from resflax.data.augment.affine import WARPS, warp, warp_matrix
from resflax.data.augment.blur import gaussian_blur

# The argument, a float32 scalar, is a threshold, an addend, a number of bits, a blend factor (0:
# gray, black or smoothed; 1: unchanged) or a standard deviation in pixels.
COLOR_OPS: dict[str, Callable[[Array, Array], Array]] = {
    "identity": lambda image, argument: image,
    "autocontrast": lambda image, argument: color.autocontrast(image),
    "equalize": lambda image, argument: color.equalize(image),
    "invert": lambda image, argument: 255 - image,
    "solarize": color.solarize,
    "solarize_add": color.solarize_add,
    "color": color.saturation,
    "posterize": color.posterize,
    "contrast": color.contrast,
    "brightness": color.brightness,
    "sharpness": color.sharpness,
    "blur": gaussian_blur,
}


def apply_op(
    image: UInt8[Array, "h w c"],
    op: Int[Array, ""],
    argument: Float[Array, ""],
    names: Sequence[str],
) -> UInt8[Array, "h w c"]:
    """Applies one operation to one image.

    Args:
      image: image of any size.
      op: position in `names`, an int32 scalar.
      argument: argument of this operation, a float32 scalar.
      names: rows of `COLOR_OPS` and `WARPS`; one may occur several times.
    """
    size, branches = image.shape[:2], list(dict.fromkeys(n for n in names if n in COLOR_OPS))
    # Under `vmap` every branch is computed for every image. The warps are therefore one resampling
    # with several matrices; for other operations it runs with the identity.
    if any(name in WARPS for name in names):
        warps = list(dict.fromkeys(("identity", *(n for n in names if n in WARPS))))
        matrices = jnp.stack([warp_matrix(name, argument, *size) for name in warps])
        row = np.array([warps.index(n) if n in WARPS else 0 for n in names], np.int32)
        image = warp(image, matrices[jnp.asarray(row)[op]])
        branches = list(dict.fromkeys(("identity", *branches)))
    branch = np.array([branches.index(n) if n in COLOR_OPS else 0 for n in names], np.int32)
    functions = [COLOR_OPS[name] for name in branches]
    return jax.lax.switch(jnp.asarray(branch)[op], functions, image, argument)
