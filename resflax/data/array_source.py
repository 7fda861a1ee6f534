"""Examples in memory as a `Source`, for splits that are read through the data loader."""

import numpy as np
from jaxtyping import Int, Num

from resflax.data.decode import convert_pixels
from resflax.data.fingerprint import Fingerprint
from resflax.data.in_memory import InMemorySplit
from resflax.errors import UserError


class ArraySource:
    """The examples of an `InMemorySplit` (see `Source`)."""

    def __init__(self, name: str, split: InMemorySplit, classes: tuple[str, ...]) -> None:
        self.name, self.split, self.classes = name, split, classes
        self.problems: list[str] = []

    def __len__(self) -> int:
        return len(self.split)

    def location(self, index: int) -> str:
        """Returns the split and index of an example."""
        return f"{self.name}[{index}]"

    def file_name(self, index: int) -> str:
        """Returns "": the examples have no files."""
        del index
        return ""

    def fingerprint(self) -> Fingerprint:
        """Returns the number of "examples" and what identifies them."""
        return self.split.fingerprint()

    def labels(self) -> Int[np.ndarray, " examples"]:
        """Returns the label of each example."""
        return self.split.labels

    def read(self, index: int, channels: int = 0) -> tuple[Num[np.ndarray, "*space channels"], int]:
        """Returns the pixels and the label of an example; only images are converted.

        Raises:
          UserError: if `channels` are given, those of images, and the example is another array.
        """
        pixels, label = self.split.images[index], int(self.split.labels[index])
        if pixels.ndim == 3 and pixels.dtype == np.uint8:
            return convert_pixels(pixels, channels), label
        if channels:
            raise UserError(
                f"{self.name} has {pixels.dtype} arrays of shape {pixels.shape}: expected uint8"
                " images (height, width, channels), as the network takes them"
            )
        return pixels, label
