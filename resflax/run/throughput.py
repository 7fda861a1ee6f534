"""Training speed and remaining time of a run; tasks that may take a small share of it."""

import time
from typing import Any


class Throughput:
    """Examples per second without set-up and evaluation; remaining time with evaluation.

    The first step, that after `expect_compilation` and the first evaluation compile their programs.
    The step's time is ignored once there are other steps, and the evaluation's does not count in
    the remaining time.

    Args:
      steps: number of steps of the whole run.
      examples: number of examples trained on in these steps.
      seconds: time that they took.

    Attributes:
      overall: examples per second of training so far.
    """

    def __init__(self, steps: int, examples: int = 0, seconds: float = 0.0) -> None:
        self.steps = steps
        self.start = self.lap_start = time.monotonic()
        self.compiled = False
        self.seconds = seconds
        self.examples, self.lap_examples, self.step_examples = examples, 0, 0
        self.evaluations, self.eval_seconds = 0, 0.0
        self.overall = examples / seconds if seconds else 0.0

    def step(self, examples: int, steps: int = 1) -> None:
        """Counts a call that has finished (the first) or was dispatched (all others).

        Args:
          examples: number of examples of a step.
          steps: number of steps of the call.
        """
        self.step_examples = examples
        if not self.compiled:
            now = time.monotonic()
            self.compiled = True
            self.overall = self.overall or examples * steps / (now - self.start)
            self.start = self.lap_start = now
        else:
            self.lap_examples += examples * steps

    def expect_compilation(self) -> None:
        """Ends a lap; the next step compiles, and its time is ignored. All others have finished."""
        self.lap()
        self.compiled = False

    def lap(self) -> float:
        """Returns examples per second since the last lap or pause; all steps must have finished."""
        now = time.monotonic()
        if not self.lap_examples:
            return self.overall
        seconds = now - self.lap_start
        speed = self.lap_examples / seconds
        self.seconds += seconds
        self.examples += self.lap_examples
        self.overall = self.examples / self.seconds
        self.lap_start, self.lap_examples = now, 0
        return speed

    def pause(self, examples: int) -> float:
        """Returns the seconds since the last lap, and excludes them from the training time.

        Args:
          examples: number of examples evaluated in this time.
        """
        now = time.monotonic()
        seconds = now - self.lap_start
        self.lap_start = now
        if not self.evaluations:
            # It compiled: without that, an example takes no longer than in training.
            self.eval_seconds = min(seconds, examples / self.overall) if self.overall else seconds
        else:
            self.eval_seconds += (seconds - self.eval_seconds) / self.evaluations  # their mean
        self.evaluations += 1
        return seconds

    def exclude_seconds(self, seconds: float) -> None:
        """Excludes some seconds since the last lap or pause from the training time."""
        self.lap_start += seconds

    def exclude(self) -> None:
        """Excludes the seconds since the last lap or pause from the training time."""
        self.lap_start = time.monotonic()

    def remaining(self, step: int, evaluations: int) -> float | None:
        """Estimates the seconds from `step` to the end of the run; None if it is too early.

        Args:
          step: number of steps taken.
          evaluations: number of evaluations left.
        """
        if not self.seconds or not self.step_examples:
            return None
        training = (self.steps - step) * self.step_examples / self.overall
        return training + evaluations * self.eval_seconds


class RareTask:
    """A task that takes at most a share of the time: a context that measures it.

    Args:
      seconds: estimate of its time before it is first measured.
      share: largest share of the time.
    """

    def __init__(self, seconds: float, share: float) -> None:
        self._seconds, self._share, self._last = seconds, share, time.monotonic()

    def is_due(self) -> bool:
        """Returns whether enough time has passed since the start or the last end of the task."""
        return time.monotonic() - self._last >= self._seconds / self._share

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *exception: Any) -> None:
        self._last = time.monotonic()
        self._seconds = self._last - self._start
