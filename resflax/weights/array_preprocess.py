"""Evaluation preprocessing of arrays that are not images: signals, volumes, other numbers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from resflax.data.array_files import read_array
from resflax.errors import UserError
from resflax.weights.preprocess import Preprocess


@dataclass(frozen=True, kw_only=True)
class ArrayPreprocess(Preprocess):
    """Normalizes an array `(*space, channels)`; nothing is resized or cropped.

    Attributes:
      space: sizes of the spatial axes of the training examples, such as `(256,)` of signals.
      dtype: dtype of the training examples. Of "uint8", values are divided by 255 first.
    """

    space: tuple[int, ...]
    dtype: str = "float32"

    @property
    def sides(self) -> tuple[int, ...]:
        """Sizes of the spatial axes of the network's input."""
        return self.space

    def __call__(self, image: Any) -> Float[np.ndarray, "*space channels"]:
        """Returns the float32 input for one example.

        Args:
          image: an array of the shape of the training examples, or the path of an .npy file. The
            axis of channels may be missing if there is one channel.

        Raises:
          UserError: if the file cannot be read, or the array has another shape or dtype.
        """
        array = read_array(Path(image)) if isinstance(image, str | Path) else np.asarray(image)
        shape = (*self.space, self.channels)
        if array.shape == self.space and self.channels == 1:
            array = array[..., None]
        is_stored = (array.dtype == np.uint8) == (self.dtype == "uint8")
        if array.shape != shape or array.dtype.kind not in "uif" or not is_stored:
            raise UserError(
                f"expected an array of {self.dtype} and shape {shape}: got {array.dtype} and"
                f" {array.shape}"
            )
        scale = np.float32(255 if self.dtype == "uint8" else 1)
        values = array.astype(np.float32) / scale
        return (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)


def check_takes_images(preprocess: Preprocess, command: str) -> None:
    """Checks that a network takes uint8 images, for a command that reads image files.

    Raises:
      UserError: if it takes other arrays.
    """
    if isinstance(preprocess, ArrayPreprocess):
        raise UserError(
            f"{command} reads uint8 images, and the network takes {preprocess.dtype} arrays of"
            f" shape {(*preprocess.space, preprocess.channels)}: use resflax.load_pretrained in"
            " Python, whose preprocess normalizes arrays"
        )
