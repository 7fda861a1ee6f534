"""Interface of a split on disk with random access to its examples."""

from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Int, UInt8

from resflax.data.fingerprint import Fingerprint
from resflax.errors import UserError, unknown

# What loading does with an example that cannot be read.
ON_BAD_EXAMPLE = ("raise", "skip")
# Mean and standard deviation of each channel, of pixels scaled to [0, 1].
MeanStd = tuple[tuple[float, ...], tuple[float, ...]]


class Source(Protocol):
    """Random access to the examples of one split on disk.

    Attributes:
      name: name of the split, for messages.
      classes: class names; label `i` is `classes[i]`.
      problems: problems of the split's layout, such as classes without images.
    """

    name: str
    classes: tuple[str, ...]
    problems: list[str]

    def __len__(self) -> int: ...

    def location(self, index: int) -> str:
        """Returns the file, or split and index, of an example, for messages."""
        ...

    def file_name(self, index: int) -> str:
        """Returns the name of the file of an example, with its folder; "" if it has none."""
        ...

    def labels(self) -> Int[np.ndarray, " examples"] | None:
        """Returns the label of each example; None if that is known only after reading it."""
        ...

    def read(
        self, index: int, channels: int = 0
    ) -> tuple[UInt8[np.ndarray, "height width channels"], int]:
        """Returns the pixels and the label of an example; see `decode` for `channels`.

        Raises:
          BadExampleError: if the example cannot be used.
        """
        ...

    def fingerprint(self) -> Fingerprint:
        """Returns the number of "examples" and what identifies them; reads a sample of them."""
        ...


class SplitSources(NamedTuple):
    """The splits of a dataset on disk.

    Attributes:
      train: the training split.
      validation: the validation split; None if there is none.
      test: the test split; None if there is none.
      names: names of "train", "validation" and "test" in the dataset; "" for one that is missing.
      note: which splits were found, for the user.
    """

    train: Source
    validation: Source | None
    test: Source | None
    names: dict[str, str]
    note: str


def check_on_bad_example(value: str) -> None:
    """Raises `UserError` if `value` is not in `ON_BAD_EXAMPLE`."""
    if value not in ON_BAD_EXAMPLE:
        raise unknown("on_bad_example", value, ON_BAD_EXAMPLE)


def check_two_classes(source: Source) -> None:
    """Raises `UserError` if all examples of a training split have the same class.

    Nothing is checked if the labels are not known before the examples are read.
    """
    labels = source.labels()
    present = [] if labels is None else np.unique(labels).tolist()
    if len(present) == 1:
        raise UserError(
            f"{source.name}: all {len(source)} examples have the class"
            f" {source.classes[present[0]]!r}: expected examples of two or more classes in the"
            " training split"
        )


def bad_example(problem: object) -> UserError:
    """Returns the error for an example or class that cannot be used and may not be skipped."""
    return UserError(
        f"{problem}: fix it, or skip it with --config.data.on_bad_example=skip (evaluate:"
        " --on-bad-example=skip)"
    )
