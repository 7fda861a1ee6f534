"""A JAX network as a `Run`: what resflax and the plain Flax peer share."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.task import Task
from benchmarks.weights import Weights, make_batch

Tree = dict[str, Any]


def nested(flat: Weights) -> Tree:
    """`{"a/b": x}` as `{"a": {"b": x}}`."""
    tree: Tree = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


class JaxRun:
    """Jitted, the state donated, the batch on the device.

    Args:
      make_state: from weights by resflax's names to the state that `train_step` takes.
      train_step: pure `(state, images, labels) -> (state, loss)`.
      predict: pure `(state, images) -> logits` in evaluation mode.
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
        self.train_step = jax.jit(train_step, donate_argnums=0)
        self.predict = jax.jit(predict)

    def load(self, weights: Weights) -> None:
        """See `Run`; the optimiser's state is made on the device too."""
        self.state = jax.block_until_ready(jax.device_put(self.make_state(weights)))

    def step(self) -> jax.Array:
        """See `Run`."""
        self.state, loss = self.train_step(self.state, *self.batch)
        return loss

    def forward(self) -> jax.Array:
        """See `Run`."""
        return self.predict(self.state, self.batch[0])

    def wait(self, result: Any) -> None:
        """See `Run`; the state is waited for too: the update comes after the loss."""
        jax.block_until_ready((result, self.state))

    def host(self, result: jax.Array) -> np.ndarray:
        """See `Run`."""
        return np.asarray(result, np.float32)

    def compile(self) -> dict[str, float]:
        """See `Run`; steps after it run what was compiled here."""
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

    def device_bytes(self) -> int | None:
        """See `Run`."""
        statistics = jax.local_devices()[0].memory_stats() or {}
        return statistics.get("peak_bytes_in_use")
