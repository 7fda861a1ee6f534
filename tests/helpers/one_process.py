"""One of several processes: `python -m helpers.one_process PORT COUNT INDEX FOLDER`.

Saves the batches of this process in the folder. A separate program, since JAX must connect
processes before it does anything else.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from helpers.counting_step import collect_batches, counting_step
from resflax.data import InMemorySplit, load_dataset
from resflax.distributed import DistributedConfig
from resflax.distributed.processes import broadcast_tree
from resflax.train import default_config, make_engine
from resflax.train.input_pipeline import make_device_step_fn, make_host_step_fn

STARTS = (0, 37)
STEPS = 4
# Input pipelines: where the examples are, the step function, and the number of loader workers.
PIPELINES = {
    "memory-host-0": make_host_step_fn,
    "memory-device-0": make_device_step_fn,
    "stream-host-0": make_host_step_fn,
    "stream-host-2": make_host_step_fn,
}
# Broadcast from process 0: scalars and arrays, negative zero and NaN, large integers, two bytes,
# no elements.
TREE = {
    "step": np.int32(7),
    "minus": np.float32(-0.0),
    "special": np.array([[-0.0, np.nan, np.inf], [1e-45, 1.0, -1.0]], np.float32),
    "large": np.array([2**63 + 1, 0], np.uint64),
    "half": np.arange(3, dtype=jnp.bfloat16).view(np.uint16),
    "empty": np.zeros((0, 2), np.float32),
}


def main(port, count, index, folder):
    """Saves a file of batches for every engine, pipeline and first step."""
    if count > 1:
        DistributedConfig(True, f"127.0.0.1:{port}", count, index).initialize()
        received = broadcast_tree(TREE if index == 0 else jax.tree.map(np.zeros_like, TREE))
        np.savez(folder / f"broadcast-{index}.npz", **received)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (50, 3, 3, 1), np.uint8)
    splits = {
        "memory": InMemorySplit(pixels, rng.integers(0, 9, 50).astype(np.int32)),
        "stream": load_dataset(f"folder:{folder / 'images'}", image_size=8, seed=3).train,
    }
    for parallel in ("pmap", "mesh"):
        engine = make_engine(parallel)
        for name, make in PIPELINES.items():
            kind, _, workers = name.split("-")
            for start in STARTS:
                config = default_config()
                config.seed, config.batch_size, config.data.num_workers = 5, 16, int(workers)
                step_fn = make(engine, counting_step, splits[kind], config, start, start + STEPS)
                batches = collect_batches(engine, step_fn, start, STEPS)
                path = folder / f"{parallel}-{name}-{start}-{count}-{index}.npz"
                np.savez(path, **{key: np.stack([b[key] for b in batches]) for key in batches[0]})


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), Path(sys.argv[4]))
