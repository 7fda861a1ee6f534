"""A profile of some steps of a run, for xprof, TensorBoard and Perfetto."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax


class StepProfiler:
    """Writes a trace of steps to a folder, by `jax.profiler`.

    It waits for the devices before the first of the steps and after the last one, and nowhere else.

    Args:
      steps: numbers of the first and the last step, from 1; () for no trace.
      folder: where the trace is written.
      writes: whether this process writes it.
    """

    def __init__(self, steps: Sequence[int], folder: Path, *, writes: bool = True) -> None:
        self._steps, self._folder, self._writes = tuple(steps), folder, writes
        self._is_running = False

    def before(self, step: int, state: Any) -> float:
        """Starts the trace if `step` is the first one; `state` are the arrays that it gets.

        Returns:
          The seconds that the start took.
        """
        if not (self._writes and self._steps and step == self._steps[0]):
            return 0.0
        jax.block_until_ready(state)
        start = time.monotonic()
        jax.profiler.start_trace(self._folder)
        self._is_running = True
        return time.monotonic() - start

    def annotate(self, step: int) -> contextlib.AbstractContextManager[Any]:
        """Returns a context for the dispatch of a step, which the trace shows with its number."""
        if self._is_running:
            return jax.profiler.StepTraceAnnotation("train", step_num=step)
        return contextlib.nullcontext()

    def after(self, step: int, results: Any) -> float:
        """Stops the trace if `step` is the last one, when its `results` are computed.

        Returns:
          The seconds in which the trace was written.
        """
        if not (self._is_running and step == self._steps[1]):
            return 0.0
        jax.block_until_ready(results)
        start = time.monotonic()
        self.close()
        return time.monotonic() - start

    def close(self) -> None:
        """Stops a trace of a run that ends early."""
        if self._is_running:
            self._is_running = False
            jax.profiler.stop_trace()

    def __enter__(self) -> "StepProfiler":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()
