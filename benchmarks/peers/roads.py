"""resflax's trainer at work: the same step on one batch that stays, and on batches that come.

Small images lie in memory, 50,000 of them, and come by both of the trainer's roads: "device" and
"host". Large ones are read from a folder of JPEGs, by as many worker processes as the part says.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks.peers import DEVICE, FIXED
from benchmarks.task import Task
from resflax import create_model
from resflax.data import InMemorySplit, Split, load_dataset, normalize
from resflax.train import create_state, default_config, make_engine, make_optimizer, make_train_step
from resflax.train.input_pipeline import device_feed, keep_two_in_flight, training

EXAMPLES = 50_000  # CIFAR's
STEPS = 100_000  # more than are taken; the device road sends the order of all of them ahead
PRIMING = 6  # steps that what was read ahead is used up in


class Roads:
    """Parts are those of `SMALL_ROADS` or `LARGE_ROADS`; a call is a training step.

    Attributes:
      blocked: seconds that were spent in waiting for the next batch.
    """

    def __init__(self, task: Task) -> None:
        self.task, self.platform = task, jax.default_backend()
        self.library, self.images, self.blocked = f"jax {jax.__version__}", task.batch, 0.0
        self.config = default_config()
        self.config.batch_size, self.config.seed = task.batch, task.seed
        self.engine = make_engine(self.config.parallel)
        model = create_model(task.model, dtype=task.dtype, **task.overrides)
        optimizer = make_optimizer("sgd", task.learning_rate, weight_decay=task.weight_decay)
        # Nothing is augmented: the shorter the step, the more visible what comes beside it.
        self.step = make_train_step(
            model,
            optimizer,
            normalize=partial(normalize, mean=(0.5,) * 3, std=(0.25,) * 3),
            axis_name=self.engine.axis_name,
        )
        self.first = create_state(model, optimizer, task.seed, (task.size, task.size, 3))
        self.run = self.engine.compile_train(self.step)
        self.states: dict[str, Any] = {}
        self.advance: dict[str, Callable[[Any], Any]] = {}

    def folder(self, dataset: str) -> None:
        """Takes the folder; "" for images in memory."""
        if dataset:
            self.split: Split = load_dataset(dataset, image_size=self.task.size).train
        else:
            rng, size = np.random.default_rng(self.task.seed), self.task.size
            images = rng.integers(0, 256, (EXAMPLES, size, size, 3), np.uint8)
            self.split = InMemorySplit(images, rng.integers(0, 10, EXAMPLES).astype(np.int32))

    @contextlib.contextmanager
    def opened(self, part: str) -> Iterator[Callable[[], Any]]:
        """See `Parts`: a part goes on from the state that it was left in."""
        state = self.states.pop(part, None) or self.engine.replicate(self.first)
        window: list[Any] = []
        with self._road(part) as advance:

            def call() -> Any:
                nonlocal state
                state, metrics = advance(state)
                window.append(metrics)
                keep_two_in_flight(window)
                del window[:-3]
                return metrics

            for _ in range(PRIMING):
                call()
            self.wait(window)
            yield call
            self.states[part] = jax.block_until_ready(state)

    @contextlib.contextmanager
    def _road(self, part: str) -> Iterator[Callable[[Any], Any]]:
        if part == DEVICE:  # it knows where it is, and must not be compiled again
            if part not in self.advance:
                self.advance[part] = device_feed(
                    self.engine, self.step, self.split, self.config, 0, STEPS
                )
            yield self.advance[part]
            return
        self.config.data.num_workers = 2 if "2 workers" in part else 1
        mine = self.engine.local_slice(self.task.batch)
        batches = training(self.split, self.config, 0, STEPS, mine)
        try:
            if part == FIXED:
                batch = self.engine.shard_batch(next(batches))
                batches.close()  # type: ignore[attr-defined]
                yield lambda state: self.run(state, batch)
            else:
                yield lambda state: self.run(state, self.engine.shard_batch(self._next(batches)))
        finally:
            batches.close()  # type: ignore[attr-defined]

    def _next(self, batches: Iterator[Any]) -> Any:
        began = time.perf_counter()
        batch = next(batches)
        self.blocked += time.perf_counter() - began
        return batch

    def wait(self, result: Any) -> None:
        """Until the device is done."""
        jax.block_until_ready(result)


def make(task: Task) -> Roads:
    """The trainer's step and roads for a task."""
    return Roads(task)
