"""Decoding of image files to pixels."""

import io
import os
import re
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile

from resflax.errors import UserError

# Pillow modes that are accepted without conversion, and their numbers of channels.
MODE_CHANNELS = {"1": 1, "L": 1, "P": 3, "RGB": 3, "RGBA": 3}


class BadExampleError(Exception):
    """An example that cannot be used: where it is, and why."""

    def __init__(self, location: str, reason: str) -> None:
        super().__init__(f"{location}: {reason}")
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

    Raises:
      BadExampleError: if the image is empty, truncated or corrupt, less than 2 pixels wide or
        high, has more than 8 bits per channel, or, with `channels=0`, is neither gray nor RGB.

    >>> png = io.BytesIO()
    >>> Image.new("L", (3, 2), 7).save(png, "png")
    >>> decode(png.getvalue(), "gray.png").shape
    (2, 3, 1)
    """
    try:
        encoded = data.read_bytes() if isinstance(data, Path) else data
        if not encoded:
            raise BadExampleError(location, "is empty")
        image = Image.open(io.BytesIO(encoded))
        _load(image)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as e:
        cause = re.sub(r" <_io\.BytesIO object at \w+>", "", str(e))
        reason = " ".join(f"is not a readable image ({cause})".split())
        raise BadExampleError(location, reason) from e
    return convert_image(image, location, channels)


def convert_image(
    image: Image.Image, location: str, channels: int = 0
) -> UInt8[np.ndarray, "height width channels"]:
    """Converts an image to uint8 pixels; see `decode`."""
    check_header(image, location)
    if not channels and image.mode not in MODE_CHANNELS:
        modes = ", ".join(MODE_CHANNELS)
        raise BadExampleError(location, f"has mode {image.mode}: expected one of {modes}")
    mode = "L" if (channels or MODE_CHANNELS[image.mode]) == 1 else "RGB"
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels[..., None] if mode == "L" else pixels


def to_pillow(pixels: UInt8[np.ndarray, "height width channels"]) -> Image.Image:
    """Returns the Pillow image of gray (1) or RGB (3) pixels."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def convert_pixels(
    pixels: UInt8[np.ndarray, "height width channels"], channels: int
) -> UInt8[np.ndarray, "height width out_channels"]:
    """Converts pixels to gray (1) or RGB (3) like Pillow; 0 keeps their channels.

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
    """Raises `BadExampleError` if an image is too small or has more than 8 bits per channel."""
    if min(image.size) < 2:
        raise BadExampleError(
            location, f"is {image.width}x{image.height} pixels: expected 2 or more on each side"
        )
    if image.mode.startswith(("I", "F")):
        raise BadExampleError(location, f"has more than 8 bits per channel (mode {image.mode})")


def _load(image: Image.Image) -> None:
    """Decodes the pixels; a truncated file is an error even if Pillow is set to accept it."""
    saved, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        image.load()
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = saved
