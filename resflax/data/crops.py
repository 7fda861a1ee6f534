"""Crops of training images of any size to squares of one size, as rows of a table."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from resflax.data.decode import to_pillow
from resflax.data.eval_transform import INTERPOLATIONS, EvalTransform

Box = tuple[float, float, float, float]
Range = tuple[float, float]
# Szegedy et al. 2014 (arXiv:1409.4842), section 6.
INCEPTION_SCALE, INCEPTION_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
RANDOM = "random"  # interpolation: one of the next two with equal probability, as in timm
RANDOM_INTERPOLATIONS = ("bilinear", "bicubic")


@dataclass(frozen=True)
class TrainCrop:
    """How training images are cropped and resized.

    Attributes:
      kind: a row of `CROPS`.
      scale: smallest and largest area of an Inception crop, as shares of the image's area.
      ratio: smallest and largest ratio of its width to its height.
      interpolation: a row of `INTERPOLATIONS`, or `RANDOM`; "": bilinear for an Inception crop,
        else that for evaluation.
    """

    kind: str = "inception"
    scale: Range = INCEPTION_SCALE
    ratio: Range = INCEPTION_RATIO
    interpolation: str = ""

    def apply(
        self,
        pixels: UInt8[np.ndarray, "height width channels"],
        rng: np.random.Generator,
        transform: EvalTransform,
    ) -> UInt8[np.ndarray, "out_height out_width channels"]:
        """Crops and resizes an image to the size of `transform`, the one for evaluation."""
        if self.interpolation:
            transform = replace(transform, interpolation=self._sample_interpolation(rng))
        image = CROPS[self.kind](self, to_pillow(pixels), rng, transform)
        return np.asarray(image).reshape(*transform.size, pixels.shape[-1])

    def _sample_interpolation(self, rng: np.random.Generator) -> str:
        if self.interpolation != RANDOM:
            return self.interpolation
        own = rng.spawn(1)[0]  # leaves the draws of the crop as they are
        return RANDOM_INTERPOLATIONS[own.integers(len(RANDOM_INTERPOLATIONS))]


def largest_size(height: int, width: int, ratio: Range = INCEPTION_RATIO) -> tuple[int, int]:
    """Returns height and width of the largest box whose width by height is within `ratio`.

    >>> largest_size(10, 100)
    (10, 13)
    """
    return (
        max(1, min(height, round(width / ratio[0]))),
        max(1, min(width, round(height * ratio[1]))),
    )


def inception_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    scale: Range = INCEPTION_SCALE,
    ratio: Range = INCEPTION_RATIO,
) -> Box:
    """Returns a random box with a share of the area in `scale` and an aspect ratio in `ratio`.

    Sampled like torchvision: ten attempts, then the largest centered box with an allowed ratio.

    Returns:
      Left, top, right and bottom, in pixels.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        w_by_h = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * w_by_h)), round(math.sqrt(area / w_by_h))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(0, height - h + 1))
            left = int(rng.integers(0, width - w + 1))
            return left, top, left + w, top + h
    h, w = largest_size(height, width, ratio)
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def crop_and_resize(
    image: UInt8[np.ndarray, "height width channels"], box: Box, size: int
) -> UInt8[np.ndarray, "size size channels"]:
    """Crops an image to a box and resizes it to `size` x `size` with Pillow's antialiasing."""
    resized = to_pillow(image).resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized).reshape(size, size, image.shape[-1])


Crop = Callable[[TrainCrop, Image.Image, np.random.Generator, EvalTransform], Image.Image]


def _inception(
    crop: TrainCrop, image: Image.Image, rng: np.random.Generator, transform: EvalTransform
) -> Image.Image:
    box = inception_box(rng, image.height, image.width, crop.scale, crop.ratio)
    interpolation = transform.interpolation if crop.interpolation else "bilinear"
    return image.resize(transform.size[::-1], INTERPOLATIONS[interpolation], box=box)


def _resize(
    crop: TrainCrop, image: Image.Image, rng: np.random.Generator, transform: EvalTransform
) -> Image.Image:
    """Resizes the shorter side as for evaluation, and crops at random."""
    del crop
    resized = replace(transform, crop_mode="center").resize(image)
    height, width = transform.size
    top = int(rng.integers(0, resized.height - height + 1))
    left = int(rng.integers(0, resized.width - width + 1))
    return resized.crop((left, top, left + width, top + height))


def _squash(
    crop: TrainCrop, image: Image.Image, rng: np.random.Generator, transform: EvalTransform
) -> Image.Image:
    """Resizes both sides."""
    del crop, rng
    return image.resize(transform.size[::-1], INTERPOLATIONS[transform.interpolation])


def _none(
    crop: TrainCrop, image: Image.Image, rng: np.random.Generator, transform: EvalTransform
) -> Image.Image:
    """Resizes and crops as for evaluation."""
    del crop, rng
    return transform.resize_and_crop(image)


CROPS: dict[str, Crop] = {
    "inception": _inception,
    "resize": _resize,
    "squash": _squash,
    "none": _none,
}
