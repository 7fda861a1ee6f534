"""Progress while a compiler runs, which reports none: the time left is estimated."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

from resflax.progress import ProgressMeter

SECONDS = 1.0  # between two looks at the clock
# Time left after the expected time, as a share of the time so far.
LATE = 0.1


class Cost(NamedTuple):
    """Time of a compiler, linear in the lines of the lowered program.

    Attributes:
      offset: lines that take the time of the smallest program.
      seconds: time of a line, until the first program of a plan is compiled.
    """

    offset: int
    seconds: float


# ResNet-50 and `cifar_resnet8`, training and evaluation, on two cores.
COSTS = {"tpu": Cost(1200, 0.011), "cuda": Cost(225, 0.0007)}


class CompileClock:
    """Estimates how long programs compile, from those that have been compiled.

    Args:
      platform: platform of the compiler.
    """

    def __init__(self, platform: str) -> None:
        self._offset, self._rate = COSTS[platform]

    @contextlib.contextmanager
    def show(self, text: str, lines: int) -> Iterator[None]:
        """Shows progress while the block compiles a program of so many lines."""
        start, size = time.monotonic(), self._offset + lines
        with _ticking(text, self._rate * size):
            yield
        self._rate = (time.monotonic() - start) / size


@contextlib.contextmanager
def _ticking(text: str, expected: float) -> Iterator[None]:
    """Draws how much of the expected time is over, from a thread."""
    meter, done = ProgressMeter(1.0, interval=10.0, delay=5.0), threading.Event()
    start = time.monotonic()

    def draw() -> None:
        while not done.wait(SECONDS):
            elapsed = time.monotonic() - start
            left = max(expected - elapsed, LATE * elapsed)
            meter.update(elapsed / (elapsed + left) - meter.done, text)

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        meter.close()
