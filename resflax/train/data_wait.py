"""How long the devices wait for data."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
from ml_collections import ConfigDict

from resflax.run.trainer_state import TrainerState


class DataWait:
    """Adds up the time in which the devices have no work because a batch is not ready.

    Steps are dispatched ahead, so that a host that waits for a batch does not slow a device that is
    still busy. The time counts from the end of the last dispatched step, which a thread observes:
    the loop itself waits for nothing.

    Attributes:
      seconds: time waited so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._executor = ThreadPoolExecutor(1, "data_wait")
        self._end_of_step: Future[float] | None = None

    def ignore_next(self) -> None:
        """Leaves out the time waited for the next batch, of which the workers start."""
        self._end_of_step = None

    def next(self, batches: Iterator[Any]) -> Any:
        """Returns the next batch, and adds the time waited for it."""
        start = time.monotonic()
        batch = next(batches)
        end = time.monotonic()
        last = self._end_of_step
        if last is not None and last.done() and not last.exception():
            self.seconds += max(0.0, end - max(start, last.result()))
        return batch

    def dispatched(self, results: Any) -> None:
        """Takes the results of a step that has been dispatched, still on the devices."""
        self._end_of_step = self._executor.submit(_time_of_end, jax.tree.leaves(results)[0])


def _time_of_end(array: jax.Array) -> float:
    """Waits for an array; returns the time when it is computed."""
    array.block_until_ready()
    return time.monotonic()


class WaitMeter:
    """The share of the training time in which the devices waited for data.

    Args:
      wait: measures the time.
      state: of the run when it starts or resumes.
    """

    def __init__(self, wait: DataWait, state: TrainerState) -> None:
        self._wait, self._earlier = wait, state.data_wait_seconds - wait.seconds
        self._lap_wait, self._lap_start = state.data_wait_seconds, state.train_seconds

    @property
    def seconds(self) -> float:
        """Time waited in the whole run."""
        return self._earlier + self._wait.seconds

    def lap(self, train_seconds: float) -> float:
        """Returns the share since the last call; 0 if no time has passed.

        Args:
          train_seconds: training time of the whole run, see `Throughput`.
        """
        waited, passed = self.seconds - self._lap_wait, train_seconds - self._lap_start
        self._lap_wait, self._lap_start = self.seconds, train_seconds
        return round(min(1.0, waited / passed), 4) if passed > 0 else 0.0

    def share(self, train_seconds: float) -> float:
        """Returns the share in the whole run; `train_seconds` as for `lap`."""
        return min(1.0, self.seconds / train_seconds) if train_seconds > 0 else 0.0


def describe_wait(share: float, config: ConfigDict, *, is_streamed: bool) -> str:
    """Returns a warning that the devices wait for data, with what helps.

    >>> from resflax.train import default_config
    >>> describe_wait(0.25, default_config(), is_streamed=False)
    'the devices waited for data in 25 % of the training time: use config.data.placement=device'
    """
    advice = "use config.data.placement=device"
    if is_streamed:
        workers = config.data.num_workers
        advice = (
            f"raise config.data.num_workers, {workers}{' (threads)' * (not workers)}, up to the"
            " number of CPU cores, lower config.data.image_size, or store smaller images"
        )
    return f"the devices waited for data in {share:.0%} of the training time: {advice}".replace(
        "%", " %"
    )
