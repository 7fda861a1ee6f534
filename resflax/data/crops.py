"""What images of any size are cut to: at random to train on, at the centre to be evaluated on."""

import math

import numpy as np
from PIL import Image

CROP_PCT = 0.875
Box = tuple[float, float, float, float]


def inception_box(rng: np.random.Generator, height: int, width: int) -> Box:
    """A random part: 8 to 100 % of the area, sides in a ratio of 3/4 to 4/3.

    Szegedy et al. 2014 (arXiv:1409.4842), section 6, as torchvision draws it: ten tries, then the
    largest part at the centre whose ratio is allowed.

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


def centre_box(height: int, width: int) -> Box:
    """The square at the centre whose side is 87.5 % of the shorter one."""
    side = CROP_PCT * min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def resized(image: np.ndarray, box: Box, size: int) -> np.ndarray:
    """A part of an image `(h, w, c)`, resized to `(size, size, c)` with Pillow's antialiasing."""
    grey = image.shape[-1] == 1
    picture = Image.fromarray(image[..., 0] if grey else image)
    part = picture.resize((size, size), Image.Resampling.BILINEAR, box=box)
    pixels = np.asarray(part)
    return pixels[..., None] if grey else pixels
