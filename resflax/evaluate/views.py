"""Test-time views: which crops, mirrors and scales of an image are classified and averaged.

The probabilities of the views are averaged, not their logits. Whole images at several scales are
the fully convolutional test of He et al. 2015 (arXiv:1512.03385), section 3.4: the network runs
over an image of any size, and its global average pooling precedes the linear layer, so that the
logits are the mean over all positions.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import UInt8

from resflax.data import EvalTransform
from resflax.data.decode import to_pillow
from resflax.data.eval_transform import MAX_SIDE
from resflax.data.views import TTA, mirror, test_time_views
from resflax.errors import UserError, unknown

CROPS = (1, 10)
Images = UInt8[np.ndarray, "n height width channels"]


@dataclass(frozen=True)
class Views:
    """The views of each image.

    Attributes:
      tta: a name in `resflax.data.views.TTA`: "flip" to classify the mirror image too,
        "flip_shift" also the image shifted by a pixel in two directions.
      crops: 1 for the center crop; 10 for the four corners, the center and their mirrors
        (Krizhevsky et al. 2012, section 4.1).
      scales: if not empty, classify the whole image at each of these lengths of its shorter side,
        in pixels, instead of crops.

    Raises:
      UserError: if the values are invalid or contradict each other.
    """

    tta: str = "none"
    crops: int = 1
    scales: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.tta not in TTA:
            raise unknown("tta", self.tta, TTA)
        if self.crops not in CROPS:
            raise UserError(f"crops is {self.crops}: expected 1 or 10")
        if self.crops == 10 and self.tta != "none":
            raise UserError(f"ten crops contain the mirror images: expected no tta={self.tta!r}")
        if self.crops == 10 and self.scales:
            raise UserError("ten crops and scales are both given: expected one of them")
        if any(not 1 <= side <= MAX_SIDE for side in self.scales):
            raise UserError(f"scales is {self.scales}: expected integers from 1 to {MAX_SIDE}")
        if len(set(self.scales)) != len(self.scales):
            raise UserError(f"scales is {self.scales}: expected different integers")

    @property
    def count(self) -> int:
        """The number of views of each image."""
        return (len(self.scales) or self.crops) * TTA[self.tta].views

    def __str__(self) -> str:
        name = f"whole image, shorter side {', '.join(map(str, self.scales))}"
        name = name if self.scales else "ten crops" if self.crops == 10 else "one view"
        description = TTA[self.tta].description
        return f"{name}, {description}" if description else name

    def transform(self, center: EvalTransform) -> EvalTransform:
        """Returns what the data loader applies to an image: crops, or nothing for `scales`."""
        values = {field.name: getattr(center, field.name) for field in fields(EvalTransform)}
        if self.scales:
            return WholeImage(**values)
        return FiveCrop(**values) if self.crops == 10 else EvalTransform(**values)

    def of_batch(self, images: UInt8[np.ndarray, "n ..."]) -> Iterator[Images]:
        """Yields each view of a batch from the data loader, except those of `scales`.

        Args:
          images: `(n, height, width, channels)`, or `(n, 5, height, width, channels)` for ten
            crops.
        """
        if self.crops == 10:
            for crop in np.moveaxis(images, 1, 0):
                yield from (crop, mirror(crop))
        else:
            yield from test_time_views(images, self.tta)

    def of_image(self, pixels: UInt8[np.ndarray, "h w c"], interpolation: str) -> Iterator[Images]:
        """Yields each view of an image for `scales`, as batches of one."""
        for side in self.scales:
            resized = resize_shorter_side(pixels, side, interpolation)[None]
            yield from test_time_views(resized, self.tta)


@dataclass(frozen=True, kw_only=True)
class WholeImage(EvalTransform):
    """Returns the image as it is."""

    def apply(
        self, pixels: UInt8[np.ndarray, "height width channels"]
    ) -> UInt8[np.ndarray, "height width channels"]:
        """Returns `pixels`."""
        return pixels


@dataclass(frozen=True, kw_only=True)
class FiveCrop(EvalTransform):
    """Resizes like `EvalTransform` and crops the four corners and the center."""

    def apply(
        self, pixels: UInt8[np.ndarray, "height width channels"]
    ) -> UInt8[np.ndarray, "5 out_height out_width channels"]:
        """Returns the crops: top left, top right, bottom left, bottom right, center."""
        resized = self.resize(to_pillow(pixels))
        height, width = self.size
        right, bottom = resized.width - width, resized.height - height
        corners = [
            resized.crop((left, top, left + width, top + height))
            for top in (0, bottom)
            for left in (0, right)
        ]
        crops = np.stack([np.asarray(crop) for crop in (*corners, self.crop(resized))])
        return crops.reshape(5, height, width, pixels.shape[-1])


def resize_shorter_side(
    pixels: UInt8[np.ndarray, "h w c"], side: int, interpolation: str
) -> UInt8[np.ndarray, "out_h out_w c"]:
    """Resizes an image so that its shorter side has `side` pixels, like torchvision's `Resize`.

    >>> resize_shorter_side(np.zeros((10, 15, 3), np.uint8), 4, "bilinear").shape
    (4, 6, 3)
    """
    transform = EvalTransform(size=(side, side), crop_pct=1.0, interpolation=interpolation)
    resized = transform.resize(to_pillow(pixels))
    return np.asarray(resized).reshape(resized.height, resized.width, pixels.shape[-1])
