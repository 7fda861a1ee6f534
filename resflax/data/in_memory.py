"""Splits in memory: images of one size."""

from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float, Int, Num

from resflax.data.decode import BadExampleError, convert_pixels
from resflax.data.fingerprint import Fingerprint, arrays_fingerprint
from resflax.data.skipping import check_skipped
from resflax.data.source import MeanStd, Source, bad_example
from resflax.progress import progress_range

# Smallest standard deviation of a channel of numbers that are not scaled.
MIN_STD = 1e-6


@dataclass(frozen=True)
class InMemorySplit:
    """One split in memory.

    Attributes:
      images: uint8 `(n, height, width, channels)`. Arrays of `npz:PATH` can have other ranks, and
        can be float32, which is not scaled.
      labels: int32 `(n,)`, each in `range(num_classes)`.
      skipped: one line for each example that was skipped: where it is, and why.
      mean_std_override: returned by `mean_std` in place of the measured values.
      source_fingerprint: what identifies the examples on disk that were read.
    """

    images: Num[np.ndarray, "examples *space channels"]
    labels: Int[np.ndarray, " examples"]
    skipped: tuple[str, ...] = ()
    mean_std_override: MeanStd | None = None
    source_fingerprint: Fingerprint = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """`(height, width, channels)`, or the shape of an array with another rank."""
        return tuple(self.images.shape[1:])

    def get_batch(
        self, index: Int[np.ndarray, " batch"], step: int = 0
    ) -> tuple[Num[np.ndarray, "batch *space channels"], Int[np.ndarray, " batch"]]:
        """Returns the images and labels of some examples, the same at every step."""
        del step
        return self.images[index], self.labels[index]

    def mean_std(self) -> MeanStd:
        """Returns the mean and standard deviation of each channel, of pixels scaled to [0, 1].

        Of float32 arrays they are those of the numbers as they are.
        """
        if self.mean_std_override:
            return self.mean_std_override
        if self.images.dtype != np.uint8:
            return _moments(self.images)
        counts = np.stack(
            [
                np.bincount(channel.ravel(), minlength=256)
                for channel in np.moveaxis(self.images, -1, 0)
            ]
        )
        value = np.arange(256) / 255
        mean = counts @ value / counts.sum(1)
        std = np.sqrt(counts @ value**2 / counts.sum(1) - mean**2)
        return tuple(mean.tolist()), tuple(np.maximum(std, 1 / 255).tolist())

    def in_color(self) -> "InMemorySplit":
        """Returns the split with gray images as RGB."""
        return replace(self, images=convert_pixels(self.images, 3))

    def fingerprint(self) -> Fingerprint:
        """Returns the number of examples, by label, and digests of images, labels and files."""
        return self.source_fingerprint | arrays_fingerprint(self.images, self.labels)


def _moments(arrays: Float[np.ndarray, "*shape channels"]) -> MeanStd:
    """Returns mean and standard deviation of each channel, summed in float64."""
    mean, std = list[float](), list[float]()
    for channel in np.moveaxis(arrays, -1, 0):
        mean.append(float(channel.mean(dtype=np.float64)))
        std.append(max(float(channel.std(dtype=np.float64)), MIN_STD))
    return tuple(mean), tuple(std)


def read_all(source: Source, *, channels: int = 0, on_bad_example: str = "raise") -> InMemorySplit:
    """Reads every example of a source; all must have the size of the first readable one.

    Args:
      source: the split.
      channels: see `decode`; with 0, all images become RGB if one of them has color.
      on_bad_example: "raise" or "skip".

    Raises:
      UserError: if an example cannot be used and `on_bad_example` is "raise", or so many of a class
        that they cannot be skipped.
    """
    images: np.ndarray | None = None
    labels, skipped = np.empty(len(source), np.int32), dict[int, str]()
    count = 0
    for i in progress_range(len(source), f"reading {source.name}"):
        try:
            image, label = source.read(i, channels)
            if images is None:
                images = np.empty((len(source), *image.shape), np.uint8)
            _check_size(source, i, image, images.shape[1:3])
        except BadExampleError as e:
            if on_bad_example != "skip":
                raise bad_example(e) from e
            skipped[i] = str(e)
            continue
        if image.shape[-1] > images.shape[-1]:
            images = convert_pixels(images, 3)
        images[count], labels[count] = convert_pixels(image, images.shape[-1]), label
        count += 1
    check_skipped(source, skipped, labels[:count])
    assert images is not None
    return InMemorySplit(
        images[:count],
        labels[:count],
        tuple(skipped.values()),
        source_fingerprint=source.fingerprint(),
    )


def _check_size(source: Source, index: int, image: np.ndarray, size: tuple[int, ...]) -> None:
    if image.shape[:2] != size:
        (height, width), (first_height, first_width) = image.shape[:2], size
        raise BadExampleError(
            source.location(index),
            f"has {width}x{height} pixels, but the first image has {first_width}x{first_height}"
            " (--config.data.image_size=N accepts any image size)",
        )
