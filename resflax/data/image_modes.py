"""Conversion of Pillow images of any mode to upright gray or RGB images of 8 bits per channel."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Num, UInt8
from PIL import ExifTags, Image

BACKGROUND = 255  # white, on which transparent images are composited
GRAY_MODES = ("1", "L", "LA", "La", "I", "F")  # and those that start with "I;16"
# Modes whose transparent color Pillow turns into an alpha channel.
COLOR_KEY_MODES = ("1", "L", "P", "RGB")
# Formats whose images of mode "I" have 16 bits, whatever values are in them.
FORMATS_OF_16_BITS = ("PNG", "PPM", "JPEG2000")
# Bits by which Pillow shifts the samples of PNG files, as it calls their layout, but not the
# transparent color: of 16 bits it keeps the high byte; 2 and 4 bits are repeated to 8.
COLOR_KEY_SCALES: dict[str, Callable[[int], int]] = {
    "L;2": lambda sample: sample % 4 * 85,
    "L;4": lambda sample: sample % 16 * 17,
    "RGB;16B": lambda sample: sample >> 8,
}
# A float image whose largest value is 1 but for rounding, such as after resizing.
MAX_UNIT = 1 + 0.5 / 255
# Tags of TIFF files, and values of them.
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0
# How images with each EXIF orientation are turned upright; 1 is upright.
ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_gray_or_rgb(image: Image.Image, channels: int = 0) -> Image.Image:
    """Returns an image in mode "L" or "RGB", upright by its EXIF orientation.

    Images with transparency are composited on white, images of more than 8 bits are scaled (see
    `scale_to_8_bits`).

    Args:
      image: an image of any mode, with its pixels loaded.
      channels: 1 for "L", 3 for "RGB"; 0 for "L" if the image is gray.

    Raises:
      ValueError: if pixel values are negative, NaN or above 65535, or Pillow cannot convert the
        mode.

    >>> image = Image.new("LA", (2, 2), (0, 0))  # black, fully transparent
    >>> to_gray_or_rgb(image).getpixel((0, 0))
    255
    """
    is_deep = image.mode.startswith(("I", "F"))
    mode = "L" if (channels or (1 if image.mode in GRAY_MODES or is_deep else 3)) == 1 else "RGB"
    image = _turn_upright(image)
    if is_deep:
        image = _convert_deep(image)
    elif _has_transparency(image):
        image = _composite(image)
    if image.mode not in (mode, *GRAY_MODES):
        image = image.convert("RGB")  # Pillow converts some modes to RGB only
    return image if image.mode == mode else image.convert(mode)


def scale_color_key(image: Image.Image) -> None:
    """Scales the transparent color of a PNG, before its pixels are loaded, as Pillow scales these.

    >>> image = Image.new("L", (2, 2))
    >>> image.tile, image.info = [("zip", (0, 0, 2, 2), 0, "L;2")], {"transparency": 1}
    >>> scale_color_key(image)
    >>> image.info["transparency"]
    85
    """
    tiles, key = getattr(image, "tile", []), image.info.get("transparency")
    scale = COLOR_KEY_SCALES.get(tiles[0][3]) if tiles and isinstance(tiles[0][3], str) else None
    if scale and isinstance(key, int):
        image.info["transparency"] = scale(key)
    elif scale and isinstance(key, tuple):
        image.info["transparency"] = tuple(map(scale, key))


def scale_to_8_bits(
    pixels: Num[np.ndarray, "height width"], *, is_16_bits: bool = False
) -> UInt8[np.ndarray, "height width"]:
    """Scales integer or float pixels to 0..255, rounded.

    Args:
      pixels: of any integer or float dtype.
      is_16_bits: whether the pixels range from 0 to 65535. Otherwise the largest value decides: a
        float image of at most `MAX_UNIT` ranges from 0 to 1, any image of at most 255 from 0 to
        255, and any other from 0 to 65535.

    Raises:
      ValueError: if values are negative, NaN or above 65535.

    >>> scale_to_8_bits(np.array([[0.0, 0.5, 1.0]])), scale_to_8_bits(np.array([[257, 65535]]))
    (array([[  0, 128, 255]], dtype=uint8), array([[  1, 255]], dtype=uint8))
    """
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 65535):  # also if one is NaN
        raise ValueError(f"has pixel values from {low:g} to {high:g}: expected 0 to 65535 or less")
    is_float = np.issubdtype(pixels.dtype, np.floating)
    limit = 65535 if is_16_bits or high > 255 else 1 if is_float and high <= MAX_UNIT else 255
    return np.minimum(np.rint(pixels * (255 / limit)), 255).astype(np.uint8)


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        orientation: Any = image.getexif().get(ExifTags.Base.Orientation)
        method = ORIENTATIONS.get(orientation)
    except Exception:  # corrupt EXIF data: Pillow raises errors of many types
        method = None
    return image if method is None else image.transpose(method)


def _has_transparency(image: Image.Image) -> bool:
    if image.mode not in COLOR_KEY_MODES and "transparency" in image.info:
        return image.mode in ("LA", "La", "PA", "RGBA", "RGBa")
    return image.has_transparency_data


def _composite(image: Image.Image) -> Image.Image:
    """Composites a gray or color image on the background."""
    if image.mode == "La":  # which Pillow converts to LA only
        image = image.convert("LA")
    image = image.convert("RGBA")
    background = Image.new("RGBA", image.size, (BACKGROUND,) * 3)
    return Image.alpha_composite(background, image).convert("RGB")


def _convert_deep(image: Image.Image) -> Image.Image:
    """Converts an image of mode "I", "I;16" or "F" to "L"."""
    is_16_bits = image.mode.startswith("I") and (
        image.mode != "I" or image.format in FORMATS_OF_16_BITS
    )
    values = np.asarray(image)
    pixels = scale_to_8_bits(values, is_16_bits=is_16_bits)
    if is_16_bits and getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:
        pixels = 255 - pixels  # Pillow does so for 8 bits only
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        pixels[values == transparent] = BACKGROUND
    return Image.fromarray(pixels)
