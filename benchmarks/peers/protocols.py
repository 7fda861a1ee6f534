"""Interfaces between the worker process and the benchmarked implementations."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from benchmarks.weights import Weights


class BenchmarkModel(Protocol):
    """A network on its device with a fixed batch. Calls may return before their work is done.

    Attributes:
      platform: "cpu" or "gpu".
      library: name and version of the library that computes.
    """

    platform: str
    library: str

    def load(self, weights: Weights) -> None:
        """Loads weights, by their names in resflax, and resets the optimizer."""

    def step(self) -> Any:
        """Takes one training step on the batch; returns the loss before the update."""

    def forward(self) -> Any:
        """Returns the logits of the batch in evaluation mode."""

    def wait(self, result: Any) -> None:
        """Blocks until `result` and all earlier work is done."""

    def to_numpy(self, result: Any) -> np.ndarray:
        """Returns `result` as a float32 array on the host."""

    def compile(self) -> dict[str, float]:
        """Compiles the training step ahead of time; returns seconds per stage, and bytes."""

    def peak_device_bytes(self) -> int | None:
        """Returns the peak accelerator memory; None without an accelerator."""


class CaseSet(Protocol):
    """Several benchmark cases in one process, of which one runs at a time.

    Attributes:
      platform: "cpu" or "gpu".
      library: name and version of the library that computes.
      images: number of images per call of a case.
      blocked: seconds spent waiting for input since the process started.
    """

    platform: str
    library: str
    images: int
    blocked: float

    def set_dataset(self, dataset: str) -> None:
        """Loads a dataset by name; "" for the built-in random images."""

    def open(self, case: str) -> AbstractContextManager[Callable[[], Any]]:
        """Returns a context with the function to time, warmed up to its steady state.

        Worker processes of the case end with the context.
        """

    def wait(self, result: Any) -> None:
        """Blocks until `result` and all earlier work is done."""
