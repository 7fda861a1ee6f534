"""Weights and input batch shared by all implementations: NumPy functions of the task alone.

Each array depends on the seed and its name only, not on the order of creation. No norm scale is
zero, so that every branch contributes, and activations keep their magnitude at any depth.
"""

import zlib
from math import prod

import numpy as np
from jaxtyping import Float32, Int32

from benchmarks.layers import ConvLayer, layers
from benchmarks.task import Task

Weights = dict[str, np.ndarray]


def _rng(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def _norm(seed: int, layer: ConvLayer, scale: float) -> Weights:
    def noise(leaf: str) -> np.ndarray:
        return _rng(seed, f"{layer.norm}/{leaf}").standard_normal(layer.cout)

    return {
        f"params/{layer.norm}/scale": scale * (1 + 0.1 * noise("scale")),
        f"params/{layer.norm}/bias": 0.1 * noise("bias"),
        f"batch_stats/{layer.norm}/mean": 0.1 * noise("mean"),
        f"batch_stats/{layer.norm}/var": np.exp(0.1 * noise("var")),
    }


def make_weights(task: Task) -> Weights:
    """Returns parameters and running statistics, float32, by their paths in resflax's variables."""
    network = layers(task.spec, task.sides, task.channels)
    # Scaling the last norm of each branch by 1/sqrt(blocks) keeps the sum over all blocks bounded.
    branch_end = f"norm{2 if task.spec['block'] == 'basic' else 3}"
    branch_scale = sum(task.spec["depths"]) ** -0.5
    arrays: Weights = {}
    for layer in network:
        shape = (*layer.kernel, layer.cin, layer.cout)
        kernel = _rng(task.seed, layer.name).standard_normal(shape)
        kernel *= (2 / (prod(layer.kernel) * layer.cin)) ** 0.5
        kernel = kernel if layer.norm else kernel.reshape(shape[-2:])
        arrays[f"params/{layer.name}/kernel"] = kernel
        if layer.norm:
            scale = branch_scale if layer.norm.endswith(f"/{branch_end}") else 1.0
            arrays |= _norm(task.seed, layer, scale)
    arrays["params/head/bias"] = 0.1 * _rng(task.seed, "bias").standard_normal(network[-1].cout)
    return {name: value.astype(np.float32) for name, value in arrays.items()}


def make_batch(task: Task) -> tuple[Float32[np.ndarray, "n *space c"], Int32[np.ndarray, " n"]]:
    """Returns the images and labels of a task's batch."""
    shape = (task.batch, *task.sides, task.channels)
    images = _rng(task.seed, "images").standard_normal(shape, np.float32)
    labels = _rng(task.seed, "labels").integers(0, task.spec["num_classes"], task.batch)
    return images, labels.astype(np.int32)
