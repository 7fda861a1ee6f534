"""Decoding of image files to pixels."""

import io
import os
import re
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile

from resflax.data.image_modes import scale_color_key, to_gray_or_rgb
from resflax.errors import UserError, printable

# Warnings of Pillow, such as on corrupt EXIF data of an image that is decoded anyway.
PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
# Tags of TIFF files, and values of them.
BITS_PER_SAMPLE, PLANAR_CONFIGURATION, SEPARATE = 258, 284, 2


class BadExampleError(Exception):
    """An example that cannot be used: where it is, and why."""

    def __init__(self, location: str, reason: str) -> None:
        super().__init__(printable(f"{location}: {reason}"))
        self.location, self.reason = location, reason


def decode(
    data: bytes | Path, location: str, channels: int = 0
) -> UInt8[np.ndarray, "height width channels"]:
    """Decodes an image to uint8 `(height, width, channels)`.

    Args:
      data: the encoded bytes, or the file that holds them.
      location: the name of the image in error messages.
      channels: 1 or 3 to convert any image, such as a CMYK JPEG, to gray or RGB; 0 to decode
        gray images to 1 channel and color images to 3.

    The image is upright by its EXIF orientation, transparency is composited on white, more than 8
    bits per channel are scaled to 8, and an animation is its first frame: see `to_gray_or_rgb`.

    Raises:
      BadExampleError: if the image is empty, truncated or corrupt, less than 2 pixels wide or
        high, or has pixel values out of range.

    >>> png = io.BytesIO()
    >>> Image.new("L", (3, 2), 7).save(png, "png")
    >>> decode(png.getvalue(), "gray.png").shape
    (2, 3, 1)
    """
    try:
        encoded = data.read_bytes() if isinstance(data, Path) else data
        if not encoded:
            raise BadExampleError(location, "is empty")
        ignore_pillow_warnings()
        image = Image.open(io.BytesIO(encoded))
    except BadExampleError:
        raise
    except Exception as e:  # readers of formats raise errors of many types on corrupt files
        raise _unreadable(location, e) from e
    return convert_image(image, location, channels)


def convert_image(
    image: Image.Image, location: str, channels: int = 0
) -> UInt8[np.ndarray, "height width channels"]:
    """Converts an image to uint8 pixels; see `decode`."""
    ignore_pillow_warnings()
    scale_color_key(image)
    try:
        _load(image)
    except Exception as e:
        raise _unreadable(location, e) from e
    check_header(image, location)
    try:
        pixels = np.asarray(to_gray_or_rgb(image, channels))
    except ValueError as e:
        raise BadExampleError(location, str(e)) from e
    return pixels[..., None] if pixels.ndim == 2 else pixels


def ignore_pillow_warnings() -> None:
    """Adds a filter of this process that ignores the warnings of Pillow's modules.

    `warnings.catch_warnings` is not an option, since images are decoded in threads.
    """
    if PILLOW_WARNINGS not in warnings.filters:
        warnings.filterwarnings("ignore", module=PILLOW_WARNINGS[3].pattern)


def _unreadable(location: str, error: Exception) -> BadExampleError:
    text = getattr(error, "strerror", None) or str(error)  # without the path, which is `location`
    cause = re.sub(r" <_io\.BytesIO object at \w+>", "", text) or type(error).__name__
    return BadExampleError(location, " ".join(f"is not a readable image ({cause})".split()))


def to_pillow(pixels: UInt8[np.ndarray, "height width channels"]) -> Image.Image:
    """Returns the Pillow image of gray (1) or RGB (3) pixels."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def convert_pixels(
    pixels: UInt8[np.ndarray, "*batch height width channels"], channels: int
) -> UInt8[np.ndarray, "*batch height width out_channels"]:
    """Converts the pixels of an image to gray (1) or RGB (3) like Pillow; 0 keeps their channels.

    Gray pixels can be those of several images.

    >>> convert_pixels(np.full((2, 2, 1), 9, np.uint8), 3)[0, 0].tolist()
    [9, 9, 9]
    """
    if channels in (0, pixels.shape[-1]):
        return pixels
    if channels == 3:
        return np.repeat(pixels[..., :1], 3, axis=-1)
    return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]


def read_image(path: str | Path, channels: int) -> UInt8[np.ndarray, "height width channels"]:
    """Decodes an image file to 1 (gray) or 3 (RGB) channels; see `decode`.

    Raises:
      UserError: if it is missing or cannot be decoded.
    """
    if not os.path.exists(path):
        raise UserError(f"image not found: {path}")
    try:
        return decode(Path(path), str(path), channels)
    except BadExampleError as e:
        raise UserError(str(e)) from e


def check_header(image: Image.Image, location: str) -> None:
    """Raises `BadExampleError` if an image is too small, or in a layout that Pillow misreads."""
    if min(image.size) < 2:
        raise BadExampleError(
            location, f"is {image.width}x{image.height} pixels: expected 2 or more on each side"
        )
    tags = getattr(image, "tag_v2", {})
    if tags.get(PLANAR_CONFIGURATION) == SEPARATE and max(tags.get(BITS_PER_SAMPLE, (8,))) > 8:
        raise BadExampleError(
            location,
            "is a TIFF of more than 8 bits whose channels are stored one after the other, which"
            " cannot be read: save it with interleaved channels, or as PNG",
        )


def _load(image: Image.Image) -> None:
    """Decodes the pixels; a truncated file is an error even if Pillow is set to accept it."""
    saved, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        image.load()
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = saved
