"""Views of an image at test time, whose probabilities are averaged: mirrors and small shifts."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from resflax.errors import UserError, unknown


class TtaRow(NamedTuple):
    """Row of `TTA`.

    Attributes:
      shifts: by how many pixels the image is moved down and to the right, once for each view.
      is_mirrored: whether the mirror image of each is a view too.
      description: the views besides the image itself, in words.
    """

    shifts: tuple[int, ...] = (0,)
    is_mirrored: bool = True
    description: str = ""

    @property
    def views(self) -> int:
        """The number of views of an image."""
        return len(self.shifts) * (2 if self.is_mirrored else 1)


# Views of an image, by name; the first of each is the image itself.
TTA: dict[str, TtaRow] = {
    "none": TtaRow(is_mirrored=False),
    "flip": TtaRow(description="and mirrors"),
    "flip_shift": TtaRow((0, 1, -1), description="and shifts and mirrors"),
}


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
    """Returns the views of images `(n, height, width, channels)`, of equal weight.

    With "flip" the image and its mirror image (Krizhevsky et al. 2012, section 4.1). With
    "flip_shift" six: also those of the image shifted by a pixel to the lower right and to the upper
    left, as Jordan 2024 (arXiv:2404.00498, section 3.5), who gives the image itself the weight of
    both.

    Args:
      images: an array of NumPy or JAX; with "none" of any shape.
      tta: a name in `TTA`.

    Raises:
      UserError: on an unknown name, and if other arrays than images have views.
    """
    if tta not in TTA:
        raise unknown("tta", tta, TTA)
    row = TTA[tta]
    if row.views > 1 and images.ndim != 4:
        raise UserError(
            f"tta={tta!r} of an array of shape {images.shape}: expected images (n, height, width,"
            " channels), or tta='none'"
        )
    moved = [shift(images, pixels) if pixels else images for pixels in row.shifts]
    return [view for x in moved for view in ((x, mirror(x)) if row.is_mirrored else (x,))]
