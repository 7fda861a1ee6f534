"""Metrics of training steps that are still on the devices."""

from typing import Any

import jax
import numpy as np

from resflax.distributed import Engine
from resflax.train.input_pipeline import limit_in_flight

# Number of calls whose metrics may wait on the devices.
MAX_CALLS = 64


class PendingMetrics:
    """Collects the metrics of calls of the training step, and fetches those of many at once.

    Args:
      engine: engine of the run.
      step: number of steps taken so far.
      axis: axis of the steps in the metrics of a call, after that of an ensemble's members; None if
        each call takes one step and its metrics have no such axis.
    """

    def __init__(self, engine: Engine, step: int, axis: int | None) -> None:
        self._engine, self._step, self._axis = engine, step, axis
        self._calls: list[Any] = []  # on the devices
        self._counts: list[int] = []  # steps of each of them
        self._rows: list[Any] = []  # fetched, one for each step

    @property
    def is_full(self) -> bool:
        """Whether to fetch some now."""
        return len(self._calls) >= MAX_CALLS

    def add(self, metrics: Any, count: int) -> None:
        """Adds the metrics of a call of `count` steps; waits for earlier calls."""
        self._calls.append(metrics)
        self._counts.append(count)
        limit_in_flight(self._calls)

    def take(self, step: int) -> list[Any]:
        """Returns the metrics of each step up to number `step` not yet taken, as NumPy arrays."""
        calls, counts = self._engine.to_host(self._calls), self._counts
        self._calls, self._counts = [], []
        for metrics, count in zip(calls, counts, strict=True):
            self._rows += [self._row(metrics, i) for i in range(count)]
        taken = step - self._step
        rows, self._rows = self._rows[:taken], self._rows[taken:]
        self._step = step
        return rows

    def _row(self, metrics: Any, i: int) -> Any:
        if self._axis is None:
            return metrics
        return jax.tree.map(lambda x: np.take(x, i, self._axis), metrics)
