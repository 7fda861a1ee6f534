"""From a file of an image to its pixels."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

# The kinds of images that are taken as they are, and how many channels they have.
CHANNELS = {"1": 1, "L": 1, "P": 3, "RGB": 3, "RGBA": 3}


class BadExampleError(Exception):
    """An example that cannot be used: where it is, and why."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where, self.reason = where, reason


def decode(data: bytes | Path, where: str, channels: int = 0) -> np.ndarray:
    """The pixels of an encoded image, uint8 `(height, width, channels)`.

    Args:
      data: the encoded bytes, or the file that holds them.
      where: what to call it.
      channels: 1 or 3 to convert whatever it is to grey or colour, as a CMYK JPEG; 0 to take grey
        images as 1 channel and colour ones as 3.

    Raises:
      BadExampleError: if it is empty, truncated, no image, a pixel thin, of more than 8 bits, or,
        with `channels=0`, of another kind than grey or colour.

    >>> png = io.BytesIO()
    >>> Image.new("L", (3, 2), 7).save(png, "png")
    >>> decode(png.getvalue(), "grey.png").shape
    (2, 3, 1)
    """
    try:
        raw = data.read_bytes() if isinstance(data, Path) else data
        if not raw:
            raise BadExampleError(where, "is empty")
        image = Image.open(io.BytesIO(raw))
        _load(image)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as e:
        reason = " ".join(f"is no image that can be read ({e})".split())
        raise BadExampleError(where, reason) from e
    if min(image.size) < 2:
        raise BadExampleError(where, f"is {image.width} pixels wide and {image.height} high")
    if image.mode.startswith(("I", "F")):
        raise BadExampleError(where, f"has more than 8 bits a channel (mode {image.mode})")
    if not channels and image.mode not in CHANNELS:
        kinds = ", ".join(CHANNELS)
        raise BadExampleError(where, f"is of mode {image.mode}, not one of {kinds}")
    mode = "L" if (channels or CHANNELS[image.mode]) == 1 else "RGB"
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels[..., None] if mode == "L" else pixels


def _load(image: Image.Image) -> None:
    """Decodes; a file that ends early is an error even where Pillow was told to bear it."""
    saved, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        image.load()
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = saved
