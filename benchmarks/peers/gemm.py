"""Reference matrix product, whose rate counts as 100 % utilization.

It uses the fastest library that is installed, and runs in the same rounds as the implementations,
so that noise of the machine affects both.
"""

import importlib.util
from typing import Any

import numpy as np

from benchmarks.task import Task

SIDE = {"cpu": 2048, "gpu": 8192}


class NumpyGemm:
    """float32 product on the CPU."""

    def __init__(self) -> None:
        self.platform, self.dtype, self.side = "cpu", "float32", SIDE["cpu"]
        self.library = f"numpy {np.__version__}"
        self.a = np.random.default_rng(0).standard_normal((self.side, self.side), np.float32)

    def step(self) -> Any:
        """Computes one product."""
        return self.a @ self.a

    def wait(self, result: Any) -> None:
        """Does nothing: NumPy is synchronous."""


class TorchGemm:
    """Product in the task's dtype on the task's device."""

    def __init__(self, task: Task) -> None:
        import torch

        from benchmarks.peers.torch_net import pick_device

        self.torch, device = torch, pick_device(task.device)
        self.platform = "gpu" if device.type == "cuda" else "cpu"
        self.dtype, self.side = task.dtype, SIDE[self.platform]
        self.library = f"torch {torch.__version__}"
        torch.set_float32_matmul_precision("high")  # as in torch_net
        dtype = getattr(torch, task.dtype)
        self.a = torch.randn(self.side, self.side, device=device, dtype=dtype)

    def step(self) -> Any:
        """Computes one product."""
        return self.a @ self.a

    def wait(self, result: Any) -> None:
        """Blocks until the device is done."""
        if self.platform == "gpu":
            self.torch.cuda.synchronize()


class JaxGemm:
    """Product on a GPU that only JAX can use."""

    def __init__(self, task: Task) -> None:
        import jax
        import jax.numpy as jnp

        self.jax, self.platform = jax, jax.default_backend()
        self.dtype, self.side = task.dtype, SIDE[self.platform]
        self.library = f"jax {jax.__version__}"
        self.a = jax.random.normal(jax.random.key(0), (self.side, self.side), jnp.dtype(task.dtype))
        self.product = jax.jit(jnp.matmul)

    def step(self) -> Any:
        """Computes one product."""
        return self.product(self.a, self.a)

    def wait(self, result: Any) -> None:
        """Blocks until the device is done."""
        self.jax.block_until_ready(result)


def make(task: Task) -> NumpyGemm | TorchGemm | JaxGemm:
    """Makes the product with PyTorch if installed, else with JAX on a GPU or NumPy on a CPU."""
    gemm: NumpyGemm | TorchGemm
    if importlib.util.find_spec("torch"):
        gemm = TorchGemm(task)
        if gemm.platform == "gpu" or task.device == "cpu":
            return gemm
    else:
        gemm = NumpyGemm()
    if task.device != "cpu" and importlib.util.find_spec("jax"):
        import jax

        if jax.default_backend() == "gpu":
            return JaxGemm(task)
    return gemm
