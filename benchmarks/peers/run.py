"""What a worker asks of a contender."""

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
