"""Weights and a batch that every contender gets: functions of the task, made by NumPy alone.

Each array depends on the seed and its own name, so no order of making them matters. Every branch
counts (no zero scales), and no signal dies or explodes, however deep the network is.
"""

import zlib

import numpy as np

from benchmarks.layers import Layer, layers
from benchmarks.task import Task

Weights = dict[str, np.ndarray]


def _rng(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def _norm(seed: int, layer: Layer, scale: float) -> Weights:
    def noise(leaf: str) -> np.ndarray:
        return _rng(seed, f"{layer.norm}/{leaf}").standard_normal(layer.cout)

    return {
        f"params/{layer.norm}/scale": scale * (1 + 0.1 * noise("scale")),
        f"params/{layer.norm}/bias": 0.1 * noise("bias"),
        f"batch_stats/{layer.norm}/mean": 0.1 * noise("mean"),
        f"batch_stats/{layer.norm}/var": np.exp(0.1 * noise("var")),
    }


def make_weights(task: Task) -> Weights:
    """Every parameter and running statistic by its path in resflax's variables, float32."""
    rows = layers(task.spec, task.size, task.channels)
    # The last norm of a branch keeps the sum over all blocks of the order of one branch.
    branch_end = f"norm{2 if task.spec['block'] == 'basic' else 3}"
    shrunk = sum(task.spec["depths"]) ** -0.5
    arrays: Weights = {}
    for row in rows:
        kernel = _rng(task.seed, row.name).standard_normal(
            (row.kernel, row.kernel, row.cin, row.cout)
        )
        kernel *= (2 / (row.kernel**2 * row.cin)) ** 0.5
        arrays[f"params/{row.name}/kernel"] = kernel if row.norm else kernel[0, 0]
        if row.norm:
            scale = shrunk if row.norm.endswith(f"/{branch_end}") else 1.0
            arrays |= _norm(task.seed, row, scale)
    arrays["params/head/bias"] = 0.1 * _rng(task.seed, "bias").standard_normal(rows[-1].cout)
    return {name: value.astype(np.float32) for name, value in arrays.items()}


def make_batch(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 `(batch, size, size, channels)` and labels int32 `(batch,)`."""
    shape = (task.batch, task.size, task.size, task.channels)
    images = _rng(task.seed, "images").standard_normal(shape, np.float32)
    labels = _rng(task.seed, "labels").integers(0, task.spec["num_classes"], task.batch)
    return images, labels.astype(np.int32)
