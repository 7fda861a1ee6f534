"""JPEG decoders: from a file's bytes to its pixels or to a crop for training or evaluation.

`resflax` calls the functions of the data loader, and `pillow` does the same without an intermediate
NumPy array. `pillow:draft` lets libjpeg downscale during decoding if the crop is at least twice as
large as its output. The other decoders only decode; crops of their images are resized as in
`resflax`.
"""

import contextlib
import importlib
import importlib.util
import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from benchmarks.task import Task
from resflax.data.crops import crop_and_resize, inception_box
from resflax.data.decode import decode

Pixels = UInt8[np.ndarray, "h w c"]
# The whole image, a random training crop, and the center crop for evaluation.
OUTPUTS = ("whole", "train", "eval")


def _resflax(data: bytes) -> Pixels:
    return decode(data, "an image", 3)


def _pillow(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def _simplejpeg(data: bytes) -> Pixels:
    return importlib.import_module("simplejpeg").decode_jpeg(data, "RGB")


def _opencv(data: bytes) -> Pixels:
    cv2: Any = importlib.import_module("cv2")
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def _imagecodecs(data: bytes) -> Pixels:
    return importlib.import_module("imagecodecs").jpeg8_decode(data, outcolorspace="RGB")


class Decoder(NamedTuple):
    """A row of `DECODERS`: the module that must be installed, and the decoding function."""

    requires: str
    decode: Callable[[bytes], Any]


DECODERS = {
    "resflax": Decoder("PIL", _resflax),
    "pillow": Decoder("PIL", _pillow),
    "pillow:draft": Decoder("PIL", _pillow),
    "simplejpeg": Decoder("simplejpeg", _simplejpeg),
    "opencv": Decoder("cv2", _opencv),
    "imagecodecs": Decoder("imagecodecs", _imagecodecs),
}


def installed_decoders() -> list[str]:
    """Returns the names of the decoders whose libraries are installed."""
    return [name for name, row in DECODERS.items() if importlib.util.find_spec(row.requires)]


def _box(output: str, seed: int, height: int, width: int) -> tuple[float, float, float, float]:
    if output == "eval":  # the centered square with 87.5% of the shorter side
        side = 0.875 * min(height, width)
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side
    return inception_box(np.random.default_rng([0, seed]), height, width)


def _decode_draft(data: bytes, output: str, seed: int, size: int) -> Pixels:
    image = Image.open(io.BytesIO(data))
    width, height = image.size
    left, top, right, bottom = _box(output, seed, height, width)
    scale = min(right - left, bottom - top) // size  # libjpeg supports 1, 2, 4 and 8
    if scale > 1:
        image.draft(None, (math.ceil(width / scale), math.ceil(height / scale)))
    image.load()
    x, y = image.width / width, image.height / height
    return _resize(image, (left * x, top * y, right * x, bottom * y), size)


def _resize(image: Image.Image, box: tuple[float, float, float, float], size: int) -> Pixels:
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


def decode_output(name: str, output: str, data: bytes, seed: int, size: int) -> Pixels:
    """Decodes one file with one decoder.

    Args:
      name: key of `DECODERS`.
      output: one of `OUTPUTS`.
      data: contents of the file.
      seed: seed of the random crop.
      size: height and width of crops after resizing.
    """
    if name == "pillow:draft" and output == "train":
        return _decode_draft(data, output, seed, size)
    image = DECODERS[name].decode(data)
    if output == "whole":
        return np.asarray(image)
    if isinstance(image, Image.Image):
        return _resize(image, _box(output, seed, image.height, image.width), size)
    return crop_and_resize(image, _box(output, seed, *image.shape[:2]), size)


def psnr(reference: Pixels, other: Pixels) -> float:
    """Returns the peak signal-to-noise ratio of two images in dB; infinite for equal images."""
    error = np.mean((reference.astype(np.float64) - other) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else math.inf


class Decoders:
    """`CaseSet` of `decoder/output`. A call decodes all files on one thread."""

    def __init__(self, task: Task) -> None:
        import PIL

        self.platform, self.library, self.task = "cpu", f"Pillow {PIL.__version__}", task
        self.blocked = 0.0
        if "opencv" in installed_decoders():
            importlib.import_module("cv2").setNumThreads(0)

    def set_dataset(self, dataset: str) -> None:
        """Reads the first train files of a folder dataset, as many as the task's batch size."""
        root = Path(dataset.removeprefix("folder:"))
        paths = sorted((root / "train").glob("*/*.jpg"), key=lambda path: path.name)
        self.files = [path.read_bytes() for path in paths[: self.task.batch]]
        self.images = len(self.files)

    def compare(self, name: str) -> dict[str, float | None]:
        """Returns the lowest PSNR against resflax for each of `OUTPUTS`; None if all are equal."""
        lowest: dict[str, float | None] = {}
        for output in OUTPUTS:
            value = min(
                psnr(decode_output("resflax", output, *file), decode_output(name, output, *file))
                for file in self._decode_args()
            )
            lowest[output] = value if math.isfinite(value) else None
        return lowest

    def _decode_args(self) -> list[tuple[bytes, int, int]]:
        return [(data, index, self.task.size) for index, data in enumerate(self.files)]

    @contextlib.contextmanager
    def open(self, case: str) -> Iterator[Callable[[], None]]:
        """See `CaseSet`."""
        name, output = case.split("/")

        def call() -> None:
            for data, seed, size in self._decode_args():
                decode_output(name, output, data, seed, size)

        yield call

    def wait(self, result: Any) -> None:
        """See `CaseSet`. Calls are synchronous."""


def make(task: Task) -> Decoders:
    """Makes the case set of all decoders."""
    return Decoders(task)
