"""The machine's roof: one large matrix product, by the fastest library at hand.

It runs in the same rounds as the contenders, so a noisy machine is noisy for both.
"""

import importlib.util

import numpy as np

from benchmarks.task import Task

SIDE = {"cpu": 2048, "gpu": 8192}


class NumpyGemm:
    """float32 on the CPU."""

    def __init__(self) -> None:
        self.platform, self.dtype, self.side = "cpu", "float32", SIDE["cpu"]
        self.library = f"numpy {np.__version__}"
        self.a = np.random.default_rng(0).standard_normal((self.side, self.side), np.float32)

    def step(self):
        """One product."""
        return self.a @ self.a

    def wait(self, result) -> None:
        """It is done."""


class TorchGemm:
    """In the task's dtype, on the task's device."""

    def __init__(self, task: Task) -> None:
        import torch

        from benchmarks.peers.torch_net import pick_device

        self.torch, device = torch, pick_device(task.device)
        self.platform = "gpu" if device.type == "cuda" else "cpu"
        self.dtype, self.side = task.dtype, SIDE[self.platform]
        self.library = f"torch {torch.__version__}"
        torch.set_float32_matmul_precision("high")  # as the contenders
        dtype = getattr(torch, task.dtype)
        self.a = torch.randn(self.side, self.side, device=device, dtype=dtype)

    def step(self):
        """One product."""
        return self.a @ self.a

    def wait(self, result) -> None:
        """Until the device is done."""
        if self.platform == "gpu":
            self.torch.cuda.synchronize()


class JaxGemm:
    """On the GPU, where only JAX can reach it."""

    def __init__(self, task: Task) -> None:
        import jax
        import jax.numpy as jnp

        self.jax, self.platform = jax, jax.default_backend()
        self.dtype, self.side = task.dtype, SIDE[self.platform]
        self.library = f"jax {jax.__version__}"
        self.a = jax.random.normal(jax.random.key(0), (self.side, self.side), jnp.dtype(task.dtype))
        self.product = jax.jit(jnp.matmul)

    def step(self):
        """One product."""
        return self.product(self.a, self.a)

    def wait(self, result) -> None:
        """Until the device is done."""
        self.jax.block_until_ready(result)


def make(task: Task):
    """The fastest at hand: PyTorch; else JAX on a GPU, and NumPy on a CPU."""
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
