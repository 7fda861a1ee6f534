"""Decoders of JPEGs: from a file's bytes to its pixels, and to what a network is trained on.

`resflax` is what the loader runs; `pillow` the same without going through an array; `pillow:draft`
lets libjpeg scale while it decodes, where the crop is at least twice as large as what it is cut to.
Of the others, only decoding is theirs.
"""

import contextlib
import importlib.util
import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from benchmarks.task import Task
from resflax.data.crops import centre_box, crop_and_resize, inception_box
from resflax.data.decode import decode

Pixels = np.ndarray
# The whole image; a crop to train on, of a random state; the crop to be evaluated on.
WHAT = ("whole", "train", "eval")


def _resflax(data: bytes) -> Pixels:
    return decode(data, "an image", 3)


def _pillow(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def _simplejpeg(data: bytes) -> Pixels:
    import simplejpeg

    return simplejpeg.decode_jpeg(data, "RGB")


def _opencv(data: bytes) -> Pixels:
    import cv2

    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def _imagecodecs(data: bytes) -> Pixels:
    import imagecodecs

    return imagecodecs.jpeg8_decode(data, outcolorspace="RGB")


class Decoder(NamedTuple):
    """One row of `DECODERS`: the module it needs, and how it decodes."""

    needs: str
    decode: Callable[[bytes], Any]


DECODERS = {
    "resflax": Decoder("PIL", _resflax),
    "pillow": Decoder("PIL", _pillow),
    "pillow:draft": Decoder("PIL", _pillow),
    "simplejpeg": Decoder("simplejpeg", _simplejpeg),
    "opencv": Decoder("cv2", _opencv),
    "imagecodecs": Decoder("imagecodecs", _imagecodecs),
}


def installed() -> list[str]:
    """The decoders that can run here."""
    return [name for name, row in DECODERS.items() if importlib.util.find_spec(row.needs)]


def _box(what: str, number: int, height: int, width: int) -> tuple[float, float, float, float]:
    if what == "eval":
        return centre_box(height, width)
    return inception_box(np.random.default_rng([0, number]), height, width)


def _drafted(data: bytes, what: str, number: int, size: int) -> Pixels:
    image = Image.open(io.BytesIO(data))
    width, height = image.size
    left, top, right, bottom = _box(what, number, height, width)
    scale = min(right - left, bottom - top) // size  # libjpeg's scales are 1, 2, 4 and 8
    if scale > 1:
        image.draft(None, (math.ceil(width / scale), math.ceil(height / scale)))
    image.load()
    x, y = image.width / width, image.height / height
    return _cut(image, (left * x, top * y, right * x, bottom * y), size)


def _cut(image: Image.Image, box: tuple[float, float, float, float], size: int) -> Pixels:
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


def decoded(name: str, what: str, data: bytes, number: int, size: int) -> Pixels:
    """What one decoder makes of one file.

    Args:
      name: in `DECODERS`.
      what: of `WHAT`.
      data: the file.
      number: of the random crop.
      size: that crops are cut to.
    """
    if name == "pillow:draft" and what == "train":
        return _drafted(data, what, number, size)
    image = DECODERS[name].decode(data)
    if what == "whole":
        return np.asarray(image)
    if isinstance(image, Image.Image):
        return _cut(image, _box(what, number, image.height, image.width), size)
    return crop_and_resize(image, _box(what, number, *image.shape[:2]), size)


def psnr(one: Pixels, other: Pixels) -> float:
    """The ratio of signal to noise between two images, in dB; infinite for equal ones."""
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else math.inf


class Decoding:
    """Parts are `name/what`; a call decodes all files that it was given, on one thread."""

    def __init__(self, task: Task) -> None:
        import PIL

        self.platform, self.library, self.task = "cpu", f"Pillow {PIL.__version__}", task
        self.blocked = 0.0
        if "opencv" in installed():
            import cv2

            cv2.setNumThreads(0)

    def folder(self, dataset: str) -> None:
        """Takes the first images of a folder to train on, as many as the task's batch."""
        root = Path(dataset.removeprefix("folder:"))
        files = sorted((root / "train").glob("*/*.jpg"), key=lambda path: path.name)
        self.files = [path.read_bytes() for path in files[: self.task.batch]]
        self.images = len(self.files)

    def compare(self, name: str) -> dict[str, float | None]:
        """The least PSNR of a decoder against resflax, for each of `WHAT`; None if none differs."""
        found = {}
        for what in WHAT:
            worst = min(
                psnr(decoded("resflax", what, *file), decoded(name, what, *file))
                for file in self._numbered()
            )
            found[what] = worst if math.isfinite(worst) else None
        return found

    def _numbered(self) -> list[tuple[bytes, int, int]]:
        return [(data, number, self.task.size) for number, data in enumerate(self.files)]

    @contextlib.contextmanager
    def opened(self, part: str) -> Iterator[Callable[[], None]]:
        """See `Parts`."""
        name, what = part.split("/")

        def call() -> None:
            for data, number, size in self._numbered():
                decoded(name, what, data, number, size)

        yield call

    def wait(self, result: Any) -> None:
        """It is done."""


def make(task: Task) -> Decoding:
    """All decoders in one process."""
    return Decoding(task)
