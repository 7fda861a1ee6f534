"""Random crops of images of any size, for training."""

import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from resflax.data.decode import to_pillow

Box = tuple[float, float, float, float]


def inception_box(rng: np.random.Generator, height: int, width: int) -> Box:
    """Returns a random box of 8% to 100% of the area, with an aspect ratio of 3/4 to 4/3.

    Szegedy et al. 2014 (arXiv:1409.4842), section 6, sampled like torchvision: ten attempts, then
    the largest centered box with an allowed ratio.

    Returns:
      Left, top, right and bottom, in pixels.
    """
    for _ in range(10):
        area = height * width * rng.uniform(0.08, 1.0)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(0, height - h + 1))
            left = int(rng.integers(0, width - w + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def crop_and_resize(
    image: UInt8[np.ndarray, "height width channels"], box: Box, size: int
) -> UInt8[np.ndarray, "size size channels"]:
    """Crops an image to a box and resizes it to `size` x `size` with Pillow's antialiasing."""
    resized = to_pillow(image).resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized).reshape(size, size, image.shape[-1])
