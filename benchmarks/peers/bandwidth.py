"""Reference copy, whose rate counts as the whole bandwidth of the device's memory."""

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.task import Task

ITEMS = {"cpu": 2**25, "gpu": 2**30}


class Bandwidth:
    """Adds one to an array of bfloat16 that no cache can hold: reads and writes each item once."""

    def __init__(self) -> None:
        self.platform, self.dtype = jax.default_backend(), "bfloat16"
        self.library, self.side = f"jax {jax.__version__}", ITEMS[self.platform]
        self.bytes = 2 * 2 * self.side
        self.x = jnp.zeros(self.side, jnp.bfloat16)
        self.add_one = jax.jit(lambda x: x + jnp.bfloat16(1))

    def step(self) -> Any:
        """Computes one sum."""
        return self.add_one(self.x)

    def wait(self, result: Any) -> None:
        """Blocks until the device is done."""
        jax.block_until_ready(result)


def make(task: Task) -> Bandwidth:
    """Makes the copy; the task's network has no effect."""
    del task
    return Bandwidth()
