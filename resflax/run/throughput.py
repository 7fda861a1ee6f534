"""How fast a run trains, and how long it will take."""

import time


class Meter:
    """Training speed without set-up and evaluation; time left with evaluation.

    The first step compiles the program: its time counts only as long as there is no other.

    Args:
      steps: of the whole run.
      first: how many of them were taken before this start.
      examples: that were trained on in these.
      seconds: that this took.

    Attributes:
      overall: training examples per second, so far.
    """

    def __init__(self, steps: int, first: int = 0, examples: int = 0, seconds: float = 0.0) -> None:
        self.steps, self.first = steps, first
        self.started = self.lap_started = time.monotonic()
        self.compiled = False
        self.seconds = seconds
        self.examples, self.lap_examples = examples, 0
        self.overall = examples / seconds if seconds else 0.0

    def step(self, examples: int) -> None:
        """Counts a step that ended (the first) or was dispatched (the others)."""
        if not self.compiled:
            now = time.monotonic()
            self.compiled = True
            self.overall = self.overall or examples / (now - self.started)
            self.started = self.lap_started = now
        else:
            self.lap_examples += examples

    def lap(self) -> float:
        """Examples per second since the last lap or pause, all steps having ended."""
        now = time.monotonic()
        if not self.lap_examples:
            return self.overall
        seconds = now - self.lap_started
        speed = self.lap_examples / seconds
        self.seconds += seconds
        self.examples += self.lap_examples
        self.overall = self.examples / self.seconds
        self.lap_started, self.lap_examples = now, 0
        return speed

    def pause(self) -> float:
        """Seconds since the last lap, which do not count as training."""
        now = time.monotonic()
        seconds = now - self.lap_started
        self.lap_started = now
        return seconds

    def left(self, step: int) -> float:
        """Seconds until the last step, going by the steps after the first."""
        taken = max(1, step - self.first - 1)
        return (time.monotonic() - self.started) / taken * (self.steps - step)
