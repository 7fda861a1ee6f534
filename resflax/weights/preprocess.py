"""Evaluation preprocessing as in timm: resize, crop, normalize."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from resflax.errors import UserError, unknown
from resflax.nn import Spec

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
MAX_SIDE = 16_384
CROP_MODES = ("center", "squash")
ImageLike = str | Path | Image.Image | UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class Preprocess:
    """Converts an image to a network's input for evaluation.

    Attributes:
      size: height and width of the input, in pixels.
      crop_pct: side of the center crop as a fraction of the resized image's side.
      interpolation: "nearest", "bilinear", "bicubic" or "lanczos".
      mean: per-channel mean that is subtracted, for pixel values from 0 to 1.
      std: per-channel standard deviation that pixel values are divided by.
      crop_mode: "center" resizes the shorter side and keeps the aspect ratio, "squash" resizes both
        sides.

    Raises:
      UserError: if a field is invalid.
    """

    size: tuple[int, int] = (224, 224)
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise unknown("interpolation", self.interpolation, INTERPOLATIONS)
        if self.crop_mode not in CROP_MODES:
            raise unknown("crop_mode", self.crop_mode, CROP_MODES)
        valid_sides = all(isinstance(side, int) and 1 <= side <= MAX_SIDE for side in self.size)
        if len(self.size) != 2 or not valid_sides:
            raise UserError(f"size is {self.size}: expected two integers from 1 to {MAX_SIDE}")
        if not 0 < self.crop_pct <= 1:
            raise UserError(f"crop_pct is {self.crop_pct}: expected a number above 0, at most 1")
        if not self.std or len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise UserError(
                f"mean is {self.mean}, std is {self.std}: expected equal lengths and positive std"
            )

    def __call__(self, image: ImageLike) -> Float[np.ndarray, "height width channels"]:
        """Returns the float32 input for one image, with one channel per entry of `mean`.

        Args:
          image: a path, a PIL image or a uint8 array `(h, w, 3)`.

        Raises:
          UserError: if the file is missing or not a readable image, or the array has another dtype
            or shape.
        """
        resized = self._crop(self._resize(_open(image)))
        if len(self.mean) == 1:
            resized = resized.convert("L")
        pixels = np.asarray(resized, np.float32).reshape(*self.size, len(self.mean)) / 255
        return (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)

    def _resize(self, image: Image.Image) -> Image.Image:
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

    def _crop(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return image.crop((left, top, left + width, top + height))


def default_preprocess(spec: Spec) -> Preprocess:
    """Returns the preprocessing of an architecture whose weights come without a config."""
    if spec.stem == "cifar":
        return Preprocess(size=(32, 32), crop_pct=1.0)
    return Preprocess(mean=HALF, std=HALF) if spec.preact else Preprocess()


def _open(image: Any) -> Image.Image:
    if isinstance(image, str | Path):
        try:
            with Image.open(image) as opened:
                return opened.convert("RGB")
        except FileNotFoundError as e:
            raise UserError(f"image not found: {image}") from e
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
            raise UserError(f"{image} is not a readable image: {e}") from e
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
        raise UserError(f"expected a uint8 image (h, w, 3): got {array.dtype} {array.shape}")
    return Image.fromarray(array)
