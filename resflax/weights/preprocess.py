"""Evaluation preprocessing as in timm: resize, crop, normalize."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from resflax.data.decode import BadExampleError, convert_image, convert_pixels, read_image
from resflax.data.eval_transform import EvalTransform
from resflax.errors import UserError
from resflax.nn import Spec
from resflax.nn.fields import resolve

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KINETICS_MEAN, KINETICS_STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
MIN_STD = 1e-6
HALF = (0.5, 0.5, 0.5)
ImageLike = str | Path | Image.Image | UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True, kw_only=True)
class Preprocess(EvalTransform):
    """Converts an image to a network's input for evaluation: resize, crop, normalize.

    Attributes:
      interpolation: see `EvalTransform`, which also has `size`, `crop_pct` and `crop_mode`.
      mean: per-channel mean that is subtracted, for pixel values from 0 to 1.
      std: per-channel standard deviation that pixel values are divided by.

    Raises:
      UserError: if a field is invalid.
    """

    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        super().__post_init__()
        is_valid = self.std and len(self.mean) == len(self.std) and min(self.std) >= MIN_STD
        if not is_valid or not all(abs(value) < math.inf for value in (*self.mean, *self.std)):
            raise UserError(
                f"mean is {self.mean}, std is {self.std}: expected finite numbers, as many in each,"
                f" and std of {MIN_STD:g} or more"
            )

    @property
    def channels(self) -> int:
        """Number of image channels: 1 (gray) or 3 (RGB)."""
        return len(self.mean)

    @property
    def sides(self) -> tuple[int, ...]:
        """Sizes of the spatial axes of the network's input."""
        return self.size

    def __call__(self, image: ImageLike) -> Float[np.ndarray, "height width channels"]:
        """Returns the float32 input for one image, with one channel per entry of `mean`.

        Args:
          image: a path, a PIL image or a uint8 array `(h, w, 3)`.

        Raises:
          UserError: if the file is missing or not a readable image, or the array has another dtype
            or shape.
        """
        pixels = self.apply(_read_pixels(image, self.channels)).astype(np.float32) / 255
        return (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)


class ChannelAffine(NamedTuple):
    """An affine map of images, `images * scale + bias`, float32 per channel."""

    scale: Float[np.ndarray, " channels"]
    bias: Float[np.ndarray, " channels"]


def renormalization(given: Preprocess, wanted: Preprocess) -> ChannelAffine:
    """Returns the map from images that `given` has normalized to those of `wanted`.

    >>> unit, half = (Preprocess(mean=(0.0,), std=(std,)) for std in (1.0, 0.5))
    >>> renormalization(unit, half)
    ChannelAffine(scale=array([2.], dtype=float32), bias=array([0.], dtype=float32))
    """
    mean, std = np.array(given.mean), np.array(given.std)
    bias = (mean - np.array(wanted.mean)) / np.array(wanted.std)
    return ChannelAffine((std / wanted.std).astype(np.float32), bias.astype(np.float32))


def default_preprocess(spec: Spec) -> Preprocess:
    """Returns the preprocessing of an architecture whose weights come without a config."""
    if spec.stem == "cifar":
        return Preprocess(size=(32, 32), crop_pct=1.0)
    if spec.dimensions == 3:
        # Of torchvision's weights for Kinetics-400: frames of 128x171 pixels, cropped.
        return Preprocess(
            size=(112, 112), crop_pct=0.875, mean=KINETICS_MEAN, std=KINETICS_STD,
            interpolation="bilinear",
        )  # fmt: skip
    if resolve("conv", spec.conv).has_gain:
        return Preprocess(crop_pct=0.9)  # of timm's nfnet.py
    return Preprocess(mean=HALF, std=HALF) if spec.preact else Preprocess()


def _read_pixels(image: Any, channels: int) -> UInt8[np.ndarray, "h w channels"]:
    """Returns the pixels of an image, in gray or RGB as the network takes them."""
    if isinstance(image, str | Path):
        return read_image(image, channels)
    if isinstance(image, Image.Image):
        try:
            return convert_image(image, "the image", channels)
        except BadExampleError as e:
            raise UserError(str(e)) from e
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
        raise UserError(f"expected a uint8 image (h, w, 3): got {array.dtype} {array.shape}")
    return convert_pixels(array, channels)
