"""Splits read from disk on demand: images of any size, cropped and resized to one."""

from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Int, UInt8

from resflax.data.crops import TrainCrop
from resflax.data.decode import BadExampleError
from resflax.data.eval_transform import EvalTransform
from resflax.data.fingerprint import Fingerprint
from resflax.data.skipping import check_skipped
from resflax.data.source import MeanStd, Source, bad_example

# Number of examples from which `mean_std` is estimated.
STATS_SAMPLE_SIZE = 1000


@dataclass
class StreamingSplit:
    """One split on disk. The pixels of example `i` at step `s` depend on (seed, s, i, copy) only.

    Attributes:
      source: the examples on disk.
      size: side of the square training images, in pixels.
      channels: number of channels that images are converted to.
      seed: seed of the random crops; None to apply `eval_transform`.
      eval_transform: resize and crop for evaluation; None for the default at `size`. Crops of
        training images use its interpolation and resize, at `size`.
      on_bad_example: "raise", or "skip" to replace an unusable example by the next usable one.
      skipped: the examples skipped so far, by index: where each is, and why.
      mean_std_override: returned by `mean_std` in place of the estimate.
      crop: how images are cropped and resized if there is a seed.
    """

    source: Source
    size: int
    channels: int = 3
    seed: int | None = None
    eval_transform: EvalTransform | None = None
    on_bad_example: str = "raise"
    skipped: dict[int, str] = field(default_factory=dict)
    mean_std_override: MeanStd | None = None
    crop: TrainCrop = field(default_factory=TrainCrop)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`."""
        return *self.transform.size, self.channels

    @property
    def transform(self) -> EvalTransform:
        """The resize and crop for evaluation; of training images, to their size."""
        size = (self.size, self.size)
        if self.eval_transform is None:
            return EvalTransform(size=size)
        is_for_training = self.seed is not None and self.eval_transform.size != size
        return replace(self.eval_transform, size=size) if is_for_training else self.eval_transform

    def example(
        self, index: int, step: int = 0, repeat: int = 0
    ) -> tuple[UInt8[np.ndarray, "height width channels"], int, dict[int, str]]:
        """Returns the cropped pixels of a copy of an example at a step; else like `decoded`."""
        image, label, skipped = self.decoded(index)
        if self.seed is None:
            return self.transform.apply(image), label, skipped
        rng = np.random.default_rng([self.seed, step, index, *([repeat] if repeat else [])])
        return self.crop.apply(image, rng, self.transform), label, skipped

    def decoded(
        self, index: int
    ) -> tuple[UInt8[np.ndarray, "height width channels"], int, dict[int, str]]:
        """Returns pixels of any size, the label, and the examples skipped to find this one.

        Raises:
          UserError: if the example cannot be used and `on_bad_example` is "raise"; or if no
            example can be used.
        """
        skipped: dict[int, str] = {}
        for i in (np.arange(len(self)) + index) % len(self):
            try:
                image, label = self.source.read(int(i), self.channels)
            except BadExampleError as e:
                if self.on_bad_example != "skip":
                    raise bad_example(e) from e
                skipped[int(i)] = str(e)
                continue
            return image, label, skipped
        raise bad_example(f"{self.source.name}: has no readable example")

    def get_batch(
        self, index: Int[np.ndarray, " batch"], step: int = 0
    ) -> tuple[UInt8[np.ndarray, "batch height width channels"], Int[np.ndarray, " batch"]]:
        """Returns the images and labels (int32) of some examples at a step."""
        examples = [self.example(int(i), step) for i in index]
        for _, _, skipped in examples:
            self.add_skipped(skipped)
        images = np.stack([image for image, _, _ in examples])
        return images, np.array([label for _, label, _ in examples], np.int32)

    def add_skipped(self, skipped: dict[int, str]) -> None:
        """Records skipped examples.

        Raises:
          UserError: if a class has lost so many examples that they cannot be skipped.
        """
        if not skipped.keys() <= self.skipped.keys():
            self.skipped |= skipped
            check_skipped(self.source, self.skipped)

    def mean_std(self) -> MeanStd:
        """Estimates mean and standard deviation of each channel, of pixels scaled to [0, 1]."""
        if self.mean_std_override:
            return self.mean_std_override
        sample = np.linspace(0, len(self) - 1, min(STATS_SAMPLE_SIZE, len(self))).astype(int)
        sums, squares = np.zeros(self.channels), np.zeros(self.channels)
        for i in sample:
            pixels = self.example(int(i))[0].reshape(-1, self.channels) / 255
            sums += pixels.mean(0)
            squares += (pixels**2).mean(0)
        mean = sums / len(sample)
        std = np.sqrt(np.maximum(squares / len(sample) - mean**2, 1 / 255**2))
        return tuple(mean.tolist()), tuple(std.tolist())

    def fingerprint(self) -> Fingerprint:
        """Returns what identifies the examples on disk; reads a sample of them."""
        return self.source.fingerprint()
