"""What a worker asks of a contender."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from benchmarks.weights import Weights


class Run(Protocol):
    """A network on its device with a fixed batch; calls may return before their work is done.

    Attributes:
      platform: "cpu" or "gpu".
      library: name and version of what computes.
    """

    platform: str
    library: str

    def load(self, weights: Weights) -> None:
        """Takes these weights, by resflax's names, and a fresh optimiser."""

    def step(self) -> Any:
        """One step of training on the batch; returns the loss from before the update."""

    def forward(self) -> Any:
        """The batch's logits in evaluation mode."""

    def wait(self, result: Any) -> None:
        """Returns when `result` and all before it is computed."""

    def host(self, result: Any) -> np.ndarray:
        """`result` as float32."""

    def compile(self) -> dict[str, float]:
        """Makes the training step ready, ahead of time; seconds by stage, and bytes."""

    def device_bytes(self) -> int | None:
        """The most memory that was held on an accelerator; None where there is none."""


class Parts(Protocol):
    """Several things in one process, of which one at a time is measured over a stretch.

    Attributes:
      platform: "cpu" or "gpu".
      library: name and version of what computes.
      images: of one call.
      blocked: seconds spent in waiting for input, since the process began.
    """

    platform: str
    library: str
    images: int
    blocked: float

    def folder(self, dataset: str) -> None:
        """Takes the images: the name of a dataset, or "" for none."""

    def opened(self, part: str) -> AbstractContextManager[Callable[[], Any]]:
        """A part's call, once it runs as it will go on; its processes end with the context."""

    def wait(self, result: Any) -> None:
        """Returns when `result` and all before it is computed."""
