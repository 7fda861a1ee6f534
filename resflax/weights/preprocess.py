"""From an image to a network's input, as timm evaluates: resize, crop, normalise."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
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
MAX_PIXELS = 16_384
CROP_MODES = ("center", "squash")


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes a network's input.

    Attributes:
      size: height and width of the input, in pixels.
      crop_pct: the part of the resized image's sides that the crop keeps.
      interpolation: "nearest", "bilinear", "bicubic" or "lanczos".
      mean: subtracted from the channels, which run from 0 to 1.
      std: what they are divided by then.
      crop_mode: "center" resizes the shorter side, "squash" both.
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
        sides = all(isinstance(side, int) and 1 <= side <= MAX_PIXELS for side in self.size)
        if len(self.size) != 2 or not sides or not 0 < self.crop_pct <= 1:
            raise UserError(
                f"size {self.size} and crop_pct {self.crop_pct} are no part of an image"
            )
        if not self.std or len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise UserError(f"mean {self.mean} and std {self.std} must be as many, std positive")

    def __call__(self, image: Any) -> np.ndarray:
        """Maps a path, a PIL image or a uint8 array `(h, w, 3)` to float32 `(height, width, 3)`.

        Raises:
          UserError: if the file is not there or no image.
        """
        image = self._crop(self._resize(_open(image)))
        if len(self.mean) == 1:
            image = image.convert("L")
        pixels = np.asarray(image, np.float32).reshape(*self.size, len(self.mean)) / 255
        return (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)

    def _resize(self, image: Image.Image) -> Image.Image:
        height, width = (math.floor(side / self.crop_pct) for side in self.size)
        # The least that covers the target in the image's own ratio. timm leaves squares to
        # torchvision, which rounds the longer side down, and rounds others to the nearest.
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
    """What is usual for a network where nothing beside its weights says more."""
    if spec.stem == "cifar":
        return Preprocess(size=(32, 32), crop_pct=1.0)
    return Preprocess(mean=HALF, std=HALF) if spec.preact else Preprocess()


def _open(image: Any) -> Image.Image:
    if isinstance(image, str | Path):
        try:
            with Image.open(image) as opened:
                return opened.convert("RGB")
        except FileNotFoundError as e:
            raise UserError(f"there is no image {image}") from e
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
            raise UserError(f"{image} is no image that can be read: {e}") from e
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
        raise UserError(f"expected a uint8 image (h, w, 3): got {array.dtype} {array.shape}")
    return Image.fromarray(array)
