"""Splits that are read as they are needed: images of any size, cut to one."""

from dataclasses import dataclass, field

import numpy as np

from resflax.data.crops import centre_box, inception_box, resized
from resflax.data.decode import BadExampleError
from resflax.data.source import Source, bad_example

# Enough to look at for the mean and deviation of the pixels.
STATS_SAMPLE_SIZE = 1000


@dataclass
class StreamingSplit:
    """One split on disk; what example `i` is at step `s` depends on (seed, s, i) alone.

    Attributes:
      source: the examples as they lie.
      size: of the square that they are cut to, in pixels.
      channels: that they are converted to.
      seed: of the random cuts; None to cut at the centre.
      policy: "raise" or "skip": an example that cannot be used gives way to the next that can.
      skipped: those that did, and why, as far as they were met.
      fixed: mean and standard deviation to go by; None for those of a thousand examples.
    """

    source: Source
    size: int
    channels: int = 3
    seed: int | None = None
    policy: str = "raise"
    skipped: dict[int, str] = field(default_factory=dict)
    fixed: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def __len__(self) -> int:
        return len(self.source)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`."""
        return self.size, self.size, self.channels

    def example(self, index: int, step: int = 0) -> tuple[np.ndarray, int, dict[int, str]]:
        """Pixels, label, and the examples that were passed over to find one that can be used.

        Raises:
          UserError: if it cannot be used and none may be passed over, or if none can be used.
        """
        passed: dict[int, str] = {}
        for i in (np.arange(len(self)) + index) % len(self):
            try:
                image, label = self.source.read(int(i), self.channels)
            except BadExampleError as e:
                if self.policy != "skip":
                    raise bad_example(e) from e
                passed[int(i)] = str(e)
                continue
            height, width, _ = image.shape
            if self.seed is None:
                box = centre_box(height, width)
            else:
                box = inception_box(np.random.default_rng([self.seed, step, index]), height, width)
            return resized(image, box, self.size), label, passed
        raise bad_example(f"{self.source.name}: no example can be used")

    def get_batch(self, index: np.ndarray, step: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 `(n, size, size, channels)` and labels int32 of some examples at a step."""
        found = [self.example(int(i), step) for i in index]
        for _, _, passed in found:
            self.skipped |= passed
        images = np.stack([image for image, _, _ in found])
        return images, np.array([label for _, label, _ in found], np.int32)

    def mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel over a thousand examples, of 0 to 1."""
        if self.fixed:
            return self.fixed
        every = np.linspace(0, len(self) - 1, min(STATS_SAMPLE_SIZE, len(self))).astype(int)
        sums, squares = np.zeros(self.channels), np.zeros(self.channels)
        for i in every:
            pixels = self.example(int(i))[0].reshape(-1, self.channels) / 255
            sums += pixels.mean(0)
            squares += (pixels**2).mean(0)
        mean = sums / len(every)
        std = np.sqrt(np.maximum(squares / len(every) - mean**2, 1 / 255**2))
        return tuple(mean.tolist()), tuple(std.tolist())
