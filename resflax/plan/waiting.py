"""Progress while a compiler runs, which reports none: the time left is estimated."""

import contextlib
import threading
import time
from collections.abc import Iterator

from resflax.progress import ProgressMeter

SECONDS = 1.0  # between two looks at the clock
# Seconds per operation of a lowered step: measured on two cores for ResNet-50, until the first
# program of a plan is compiled.
RATES = {"tpu": 0.02, "cuda": 0.002}


class CompileClock:
    """Estimates how long programs compile, from those that have been compiled.

    Args:
      platform: platform of the compiler.
    """

    def __init__(self, platform: str) -> None:
        self._rate = RATES[platform]

    @contextlib.contextmanager
    def show(self, text: str, operations: int) -> Iterator[None]:
        """Shows progress while the block compiles a program of so many operations."""
        start, expected = time.monotonic(), self._rate * operations
        with _ticking(text, expected):
            yield
        self._rate = (time.monotonic() - start) / operations


@contextlib.contextmanager
def _ticking(text: str, expected: float) -> Iterator[None]:
    """Draws how much of the expected time is over, from a thread."""
    meter, done = ProgressMeter(1.0, interval=10.0, delay=5.0), threading.Event()
    start = time.monotonic()

    def draw() -> None:
        while not done.wait(SECONDS):
            share = min(0.99, (time.monotonic() - start) / max(expected, SECONDS))
            meter.update(share - meter.done, text)

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        meter.close()
