"""The trainer's input paths: its training step on one fixed batch and on loaded batches.

Small images are 50,000 random ones in memory, either copied to the device once or loaded batch by
batch from the host. Large images are read from a folder of JPEGs by 1 or 2 worker processes.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks.peers import FIXED_BATCH, ON_DEVICE
from benchmarks.task import Task
from resflax import create_model
from resflax.data import InMemorySplit, Split, load_dataset, normalize, train_batches
from resflax.train import create_state, default_config, make_engine, make_optimizer, make_train_step
from resflax.train.input_pipeline import limit_in_flight, make_device_step_fn

NUM_EXAMPLES = 50_000  # as in CIFAR
NUM_STEPS = 100_000  # more than are ever taken
WARMUP_STEPS = 6  # consume the prefetched batches


class InputPaths:
    """`CaseSet` of `SMALL_IMAGE_CASES` or `LARGE_IMAGE_CASES`. A call is one training step."""

    def __init__(self, task: Task) -> None:
        self.task, self.platform = task, jax.default_backend()
        self.library, self.images, self.blocked = f"jax {jax.__version__}", task.batch, 0.0
        self.config = default_config()
        self.config.batch_size, self.config.seed = task.batch, task.seed
        self.engine = make_engine(self.config.parallel)
        model = create_model(task.model, dtype=task.dtype, **task.overrides)
        optimizer = make_optimizer("sgd", task.learning_rate, weight_decay=task.weight_decay)
        # No augmentation: the shorter the step, the larger the relative cost of loading.
        self.step = make_train_step(
            model,
            optimizer,
            normalize=partial(normalize, mean=(0.5,) * 3, std=(0.25,) * 3),
            axis_name=self.engine.axis_name,
        )
        self.initial_state = create_state(model, optimizer, task.seed, (task.size, task.size, 3))
        self.compiled_step = self.engine.compile_train(self.step)
        self.states: dict[str, Any] = {}
        self.device_step: Callable[[Any], Any] | None = None

    def set_dataset(self, dataset: str) -> None:
        """Loads a folder dataset; "" makes random images in memory."""
        if dataset:
            self.split: Split = load_dataset(dataset, image_size=self.task.size).train
        else:
            rng, size = np.random.default_rng(self.task.seed), self.task.size
            images = rng.integers(0, 256, (NUM_EXAMPLES, size, size, 3), np.uint8)
            labels = rng.integers(0, 10, NUM_EXAMPLES).astype(np.int32)
            self.split = InMemorySplit(images, labels)

    @contextlib.contextmanager
    def open(self, case: str) -> Iterator[Callable[[], Any]]:
        """See `CaseSet`. A case continues from the state of its last call."""
        state = self.states.pop(case, None) or self.engine.put_state(self.initial_state)
        pending: list[Any] = []
        with self._step_function(case) as step:

            def call() -> Any:
                nonlocal state
                state, metrics = step(state)
                pending.append(metrics)
                limit_in_flight(pending)
                del pending[:-3]
                return metrics

            for _ in range(WARMUP_STEPS):
                call()
            self.wait(pending)
            yield call
            self.states[case] = jax.block_until_ready(state)

    @contextlib.contextmanager
    def _step_function(self, case: str) -> Iterator[Callable[[Any], Any]]:
        """Returns a context with a function `state -> (state, metrics)`."""
        if case == ON_DEVICE:
            yield self._on_device()
            return
        self.config.data.num_workers = 2 if "2 workers" in case else 1
        rows = self.engine.local_slice(self.task.batch)
        batches: Any = train_batches(
            self.split,
            seed=self.config.seed,
            batch_size=self.config.batch_size,
            start=0,
            stop=NUM_STEPS,
            local_rows=rows,
            num_workers=self.config.data.num_workers,
        )
        try:
            if case == FIXED_BATCH:
                batch = self.engine.shard_batch(next(batches))
                batches.close()
                yield lambda state: self.compiled_step(state, batch)
            else:
                yield lambda state: self.compiled_step(
                    state, self.engine.shard_batch(self._next(batches))
                )
        finally:
            batches.close()

    def _on_device(self) -> Callable[[Any], Any]:
        """Returns the step on device data, which counts its steps and is compiled only once."""
        if self.device_step is None:
            assert isinstance(self.split, InMemorySplit)
            self.device_step = make_device_step_fn(
                self.engine, self.step, self.split, self.config, 0, NUM_STEPS
            )
        return self.device_step

    def _next(self, batches: Iterator[Any]) -> Any:
        start = time.perf_counter()
        batch = next(batches)
        self.blocked += time.perf_counter() - start
        return batch

    def wait(self, result: Any) -> None:
        """See `CaseSet`."""
        jax.block_until_ready(result)


def make(task: Task) -> InputPaths:
    """Makes the case set of a task."""
    return InputPaths(task)
