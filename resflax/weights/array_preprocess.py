"""Evaluation preprocessing of arrays that are not images: signals, volumes, other numbers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Num

from resflax.data.array_files import read_array
from resflax.errors import UserError
from resflax.nn import Spec
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
        values = self.to_batch(array[None], "the array")[0].astype(np.float32)
        values = values / np.float32(255 if self.dtype == "uint8" else 1)
        return (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)

    def to_batch(self, arrays: np.ndarray, name: str) -> Num[np.ndarray, "n *space channels"]:
        """Returns arrays `(n, *space, channels)` with the dtype of the training examples.

        Args:
          arrays: the arrays; the axis of channels may be missing if there is one channel.
          name: what they are, for the message.

        Raises:
          UserError: if they have another shape or dtype, NaN or infinite values.
        """
        shape = (*self.space, self.channels)
        if arrays.shape[1:] == self.space and self.channels == 1:
            arrays = arrays[..., None]
        is_stored = (arrays.dtype == np.uint8) == (self.dtype == "uint8")
        if arrays.shape[1:] != shape or arrays.dtype.kind not in "uif" or not is_stored:
            raise UserError(
                f"{name} has the dtype {arrays.dtype} and the shape {arrays.shape[1:]}: expected"
                f" {self.dtype} and {shape}"
            )
        if not np.isfinite(arrays).all():
            raise UserError(f"{name} has NaN or infinite values: remove or replace them")
        return arrays.astype(self.dtype)


def check_takes_images(spec: Spec, preprocess: Preprocess, command: str) -> None:
    """Checks that a network takes uint8 images, for a command that takes no other arrays.

    Raises:
      UserError: if it takes other arrays, or signals, volumes or clips.
    """
    if isinstance(preprocess, ArrayPreprocess):
        raise UserError(
            f"{command} takes uint8 images, and the network takes {preprocess.dtype} arrays of"
            f" shape {(*preprocess.space, preprocess.channels)}: use resflax.load_pretrained in"
            " Python, whose preprocess normalizes arrays"
        )
    if spec.dimensions != 2:
        raise UserError(
            f"{command} takes images, and the network has dimensions {spec.dimensions}: use"
            " resflax.load_pretrained in Python"
        )
