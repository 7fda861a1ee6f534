"""`BenchmarkModel` for JAX networks: common code of resflax and the plain Flax peer."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.task import Task
from benchmarks.weights import Weights, make_batch

Tree = dict[str, Any]


def unflatten(flat: Weights) -> Tree:
    """Converts `{"a/b": x}` to `{"a": {"b": x}}`."""
    tree: Tree = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


class JaxModel:
    """Jitted functions with a donated state and the batch on the device.

    Args:
      task: network and batch.
      make_state: converts weights, by their names in resflax, to the state of `train_step`.
      train_step: pure function `(state, images, labels) -> (state, loss)`.
      predict: pure function `(state, images) -> logits` in evaluation mode.
    """

    def __init__(
        self,
        task: Task,
        make_state: Callable[[Weights], Any],
        train_step: Callable[..., Any],
        predict: Callable[..., Any],
    ) -> None:
        self.platform = jax.default_backend()
        self.library = f"jax {jax.__version__}"
        self.make_state = make_state
        self.batch = jax.block_until_ready(jax.device_put(make_batch(task)))
        self.train_step: Any = jax.jit(train_step, donate_argnums=0)
        self.predict = jax.jit(predict)

    def load(self, weights: Weights) -> None:
        """See `BenchmarkModel`. The optimizer state is created on the device too."""
        self.state = jax.block_until_ready(jax.device_put(self.make_state(weights)))

    def step(self) -> jax.Array:
        """See `BenchmarkModel`."""
        self.state, loss = self.train_step(self.state, *self.batch)
        return loss

    def forward(self) -> jax.Array:
        """See `BenchmarkModel`."""
        return self.predict(self.state, self.batch[0])

    def wait(self, result: Any) -> None:
        """See `BenchmarkModel`. Waits for the state too, because the update follows the loss."""
        jax.block_until_ready((result, self.state))

    def to_numpy(self, result: jax.Array) -> np.ndarray:
        """See `BenchmarkModel`."""
        return np.asarray(result, np.float32)

    def compile(self) -> dict[str, float]:
        """See `BenchmarkModel`. Later steps run the program compiled here."""
        times = [time.perf_counter()]
        traced = self.train_step.trace(self.state, *self.batch)
        times.append(time.perf_counter())
        lowered = traced.lower()
        times.append(time.perf_counter())
        self.train_step = lowered.compile()
        times.append(time.perf_counter())
        trace, lower, compiling = np.diff(times).tolist()
        memory = self.train_step.memory_analysis()
        return {
            "trace_seconds": trace,
            "lower_seconds": lower,
            "compile_seconds": compiling,
            "total_seconds": trace + lower + compiling,
            "temporary_bytes": memory.temp_size_in_bytes,
            "argument_bytes": memory.argument_size_in_bytes,
        }

    def peak_device_bytes(self) -> int | None:
        """See `BenchmarkModel`."""
        statistics = jax.local_devices()[0].memory_stats() or {}
        return statistics.get("peak_bytes_in_use")
