"""Evaluation transform: resize and crop, as timm does it."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from resflax.data.decode import to_pillow
from resflax.errors import UserError, unknown

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
CROP_MODES = ("center", "squash")
MAX_SIDE = 16_384


@dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """Resizes an image and crops its center.

    Attributes:
      size: height and width of the result, in pixels.
      crop_pct: side of the center crop as a fraction of the resized image's side.
      interpolation: "nearest", "bilinear", "bicubic" or "lanczos".
      crop_mode: "center" resizes the shorter side and keeps the aspect ratio, "squash" resizes both
        sides.

    Raises:
      UserError: if a field is invalid.
    """

    size: tuple[int, int] = (224, 224)
    crop_pct: float = 0.875
    interpolation: str = "bilinear"
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise unknown("interpolation", self.interpolation, INTERPOLATIONS)
        if self.crop_mode not in CROP_MODES:
            raise unknown("crop_mode", self.crop_mode, CROP_MODES)
        valid_sides = all(isinstance(side, int) and 1 <= side <= MAX_SIDE for side in self.size)
        if len(self.size) != 2 or not valid_sides:
            raise UserError(f"size is {self.size}: expected two integers from 1 to {MAX_SIDE}")
        if not 0 < self.crop_pct <= 1 or max(self.size) / self.crop_pct > MAX_SIDE:
            raise UserError(
                f"crop_pct is {self.crop_pct}: expected a number above 0, at most 1, for which"
                f" images are resized to {MAX_SIDE} pixels or less"
            )

    def resize_and_crop(self, image: Image.Image) -> Image.Image:
        """Returns an image of `size`, in the mode of `image`."""
        return self.crop(self.resize(image))

    def apply(
        self, pixels: UInt8[np.ndarray, "height width channels"]
    ) -> UInt8[np.ndarray, "out_height out_width channels"]:
        """Applies `resize_and_crop` to the pixels of a gray or RGB image."""
        image = self.resize_and_crop(to_pillow(pixels))
        return np.asarray(image).reshape(*self.size, pixels.shape[-1])

    def resize(self, image: Image.Image) -> Image.Image:
        """Returns an image that `crop` can crop: `size` divided by `crop_pct`, rounded down."""
        height, width = (math.floor(side / self.crop_pct) for side in self.size)
        # The smallest size that covers the target at the image's aspect ratio. timm resizes to a
        # square target with torchvision, which rounds the longer side down, and rounds to nearest
        # for other targets.
        if self.crop_mode == "center" and height == width:
            width, height = (int(width * side / min(image.size)) for side in image.size)
        elif self.crop_mode == "center":
            ratio = min(image.width / width, image.height / height)
            width, height = (round(side / ratio) for side in image.size)
        return image.resize((width, height), INTERPOLATIONS[self.interpolation])

    def crop(self, image: Image.Image) -> Image.Image:
        """Returns the center of an image, of `size`."""
        height, width = self.size
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return image.crop((left, top, left + width, top + height))
