"""resflax's own input: batches of the digits from memory onto the device."""

import jax

from benchmarks.task import Task
from resflax.data import load_dataset, train_batches


class Pipeline:
    """Makes batches as the trainer does; `step` is one batch."""

    def __init__(self, task: Task) -> None:
        self.platform, self.library = jax.default_backend(), f"jax {jax.__version__}"
        examples = load_dataset("digits").train
        self.batches = train_batches(
            examples, seed=task.seed, batch_size=task.batch, start=0, stop=2**31
        )

    def step(self):
        """The next batch, on its way to the device."""
        return jax.device_put(next(self.batches))

    def wait(self, result) -> None:
        """Until it is there."""
        jax.block_until_ready(result)


def make(task: Task) -> Pipeline:
    """The digits in batches of the task's size."""
    return Pipeline(task)
