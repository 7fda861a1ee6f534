"""Training speed and remaining time of a run."""

import time


class Throughput:
    """Examples per second without set-up and evaluation; remaining time with evaluation.

    The first step compiles the program, so its time is ignored once there are other steps.

    Args:
      steps: number of steps of the whole run.
      first: number of steps taken before this process.
      examples: number of examples trained on in these steps.
      seconds: time that they took.

    Attributes:
      overall: examples per second of training so far.
    """

    def __init__(self, steps: int, first: int = 0, examples: int = 0, seconds: float = 0.0) -> None:
        self.steps, self.first = steps, first
        self.start = self.lap_start = time.monotonic()
        self.compiled = False
        self.seconds = seconds
        self.examples, self.lap_examples = examples, 0
        self.overall = examples / seconds if seconds else 0.0

    def step(self, examples: int) -> None:
        """Counts a step that has finished (the first) or was dispatched (all others)."""
        if not self.compiled:
            now = time.monotonic()
            self.compiled = True
            self.overall = self.overall or examples / (now - self.start)
            self.start = self.lap_start = now
        else:
            self.lap_examples += examples

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

    def pause(self) -> float:
        """Returns the seconds since the last lap, and excludes them from the training time."""
        now = time.monotonic()
        seconds = now - self.lap_start
        self.lap_start = now
        return seconds

    def remaining(self, step: int) -> float:
        """Estimates the seconds from `step` to the last step."""
        taken = max(1, step - self.first - 1)
        return (time.monotonic() - self.start) / taken * (self.steps - step)
