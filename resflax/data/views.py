"""Views of an image at test time, whose probabilities are averaged: mirrors and small shifts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resflax.errors import unknown

# Names of the views that an image is classified in, besides itself.
TTA = ("none", "flip", "flip_shift")


def mirror(images: Any) -> Any:
    """Returns images `(..., height, width, channels)` mirrored left to right.

    Args:
      images: an array of NumPy or JAX, and so is the result.
    """
    mirrored = images[..., ::-1, :]
    return mirrored if isinstance(images, jax.Array) else np.ascontiguousarray(mirrored)


def shift(images: Any, pixels: int) -> Any:
    """Returns images `(..., height, width, channels)` moved down and to the right by some pixels.

    What comes from outside of the image is its reflection.

    Args:
      images: an array of NumPy or JAX, and so is the result; sides longer than the shift.
      pixels: negative for up and to the left.

    >>> shift(np.arange(9).reshape(3, 3, 1), 1)[..., 0]
    array([[4, 3, 4],
           [1, 0, 1],
           [4, 3, 4]])
    """
    numpy: Any = jnp if isinstance(images, jax.Array) else np
    side = (max(pixels, 0), max(-pixels, 0))
    padded = numpy.pad(images, [*[(0, 0)] * (images.ndim - 3), side, side, (0, 0)], mode="reflect")
    height, width = images.shape[-3:-1]
    top = side[1]
    return padded[..., top : top + height, top : top + width, :]


def test_time_views(images: Any, tta: str) -> list[Any]:
    """Returns the views of images `(..., height, width, channels)`, of equal weight.

    With "flip" the image and its mirror image (Krizhevsky et al. 2012, section 4.1). With
    "flip_shift" six: also those of the image shifted by a pixel to the lower right and to the upper
    left, as Jordan 2024 (arXiv:2404.00498, section 3.5), who gives the image itself the weight of
    both.

    Args:
      images: an array of NumPy or JAX.
      tta: a name in `TTA`.

    Raises:
      UserError: on an unknown name.
    """
    if tta not in TTA:
        raise unknown("tta", tta, TTA)
    moved = [images, shift(images, 1), shift(images, -1)] if tta == "flip_shift" else [images]
    return moved if tta == "none" else [view for x in moved for view in (x, mirror(x))]
