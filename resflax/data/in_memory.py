"""Splits in memory: images of one size."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from resflax.data.decode import BadExampleError
from resflax.data.source import Source, bad_example
from resflax.errors import UserError


@dataclass(frozen=True)
class InMemorySplit:
    """One split in memory.

    Attributes:
      images: uint8 `(n, height, width, channels)`.
      labels: int32 `(n,)`, each in `range(num_classes)`.
      skipped: the examples that were left out, and why.
      fixed: mean and standard deviation to go by; None for those of the pixels.
    """

    images: np.ndarray
    labels: np.ndarray
    skipped: tuple[str, ...] = ()
    fixed: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    def get_batch(self, index: np.ndarray, step: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of some examples; the same at every step."""
        del step
        return self.images[index], self.labels[index]

    def mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, of pixels scaled to [0, 1]."""
        if self.fixed:
            return self.fixed
        counts = np.stack(
            [np.bincount(c.ravel(), minlength=256) for c in np.moveaxis(self.images, -1, 0)]
        )
        value = np.arange(256) / 255
        mean = counts @ value / counts.sum(1)
        std = np.sqrt(counts @ value**2 / counts.sum(1) - mean**2)
        return tuple(mean.tolist()), tuple(np.maximum(std, 1 / 255).tolist())


def read_all(source: Source, *, channels: int = 0, policy: str = "raise") -> InMemorySplit:
    """Every example of a source, which must be of one shape: that of the first good one.

    Raises:
      UserError: if one cannot be used and `policy` is not "skip"; or if none can.
    """
    images: np.ndarray | None = None
    labels, skipped = np.empty(len(source), np.int32), []
    count = 0
    for i in told(len(source), f"reading {source.name}"):
        try:
            image, label = source.read(i, channels)
            if images is None:
                images = np.empty((len(source), *image.shape), np.uint8)
            _check_shape(source, i, image, images.shape[1:])
        except BadExampleError as e:
            if policy != "skip":
                raise bad_example(e) from e
            skipped.append(str(e))
            continue
        images[count], labels[count] = image, label
        count += 1
    if images is None:
        raise UserError(f"{source.name} has no example that can be used: expected one or more")
    return InMemorySplit(images[:count], labels[:count], tuple(skipped))


def _check_shape(source: Source, index: int, image: np.ndarray, shape: tuple[int, ...]) -> None:
    if image.shape != shape:
        raise BadExampleError(
            source.where(index),
            f"is of shape {image.shape}, the first of {shape} (--config.data.image_size=N takes"
            " images of any size, --config.data.channels=3 of any kind)",
        )


def told(count: int, what: str, every: float = 5.0) -> Iterator[int]:
    """`range(count)`, telling how far it is and what is left if it takes longer than `every` s."""
    began = said = time.monotonic()
    for i in range(count):
        if time.monotonic() - said >= every:
            said = time.monotonic()
            left = (said - began) / i * (count - i)
            print(f"{what}: {i:,} of {count:,}, {left:.0f} s left", flush=True)
        yield i
