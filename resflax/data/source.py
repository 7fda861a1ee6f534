"""Random access to the examples of a split, wherever they lie."""

from typing import Protocol

import numpy as np

from resflax.errors import UserError, unknown

POLICIES = ("raise", "skip")


class Source(Protocol):
    """A split as it lies on disk.

    Attributes:
      name: of the split, for messages.
      classes: the names of its classes; labels count from 0 in this order.
    """

    name: str
    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def where(self, index: int) -> str:
        """What to call an example in messages."""
        ...

    def read(self, index: int, channels: int = 0) -> tuple[np.ndarray, int]:
        """Pixels uint8 `(height, width, channels)` and label; see `decode` for `channels`.

        Raises:
          BadExampleError: if it cannot be used.
        """
        ...


def check_policy(policy: str) -> None:
    """Raises `UserError` on a name that is not of `POLICIES`."""
    if policy not in POLICIES:
        raise unknown("on_bad_example", policy, POLICIES)


def bad_example(text: object) -> UserError:
    """The error for an example that cannot be used, where none may be skipped."""
    return UserError(f"{text}: mend it, or leave it out with --config.data.on_bad_example=skip")
