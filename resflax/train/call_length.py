"""How many steps one call of the compiled step takes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax

# Longer calls are divided, so that progress is shown and signals stop the run.
CALL_SECONDS = 5.0
# Calls of up to so many steps are not divided; the first one that is measured takes so many.
FEW_STEPS = 64


class CallLength:
    """Chooses the number of steps of each call: up to a maximum, and to those of `CALL_SECONDS`.

    With several processes, which must take the same number of steps and measure different times,
    every call takes the maximum. The caller takes one step alone in the call that compiles.

    Args:
      maximum: `config.steps_per_call`.
    """

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._is_timed = maximum > FEW_STEPS and jax.process_count() == 1
        self.steps = FEW_STEPS if self._is_timed else maximum

    @contextmanager
    def measure(self, count: int, *, compiles: bool) -> Iterator[list[object]]:
        """Measures a call of `count` steps, until the arrays are there that the caller adds."""
        start, results = time.monotonic(), list[object]()
        yield results
        if not self._is_timed or compiles:
            return
        jax.block_until_ready(results)
        steps = int(CALL_SECONDS * count / max(time.monotonic() - start, 1e-6))
        self.steps = min(max(FEW_STEPS, steps), self._maximum)
