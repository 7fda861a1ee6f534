"""One of several processes: `one_process.py PORT COUNT NUMBER FOLDER` leaves the batches it saw.

A script of its own, since JAX joins processes before it does anything else.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from resflax.data import InMemorySplit, load_dataset
from resflax.distributed.processes import DistributedConfig, broadcast_tree
from resflax.train import default_config, make_engine
from resflax.train.input_pipeline import device_feed, host_feed
from resflax.train.state import TrainState

STARTS = (0, 37)
STEPS = 4
# What is shared: of no axis and of several, with a sign of zero and a NaN, as integers, and in two
# bytes.
TREE = {
    "step": np.int32(7),
    "minus": np.float32(-0.0),
    "odd": np.array([[-0.0, np.nan, np.inf], [1e-45, 1.0, -1.0]], np.float32),
    "big": np.array([2**63 + 1, 0], np.uint64),
    "half": np.arange(3, dtype=jnp.bfloat16).view(np.uint16),
    "none": np.zeros((0, 2), np.float32),
}


def counted(state, batch):
    """A step that shows its batch, and adds up all of it."""
    return dataclasses.replace(state, step=state.step + 1), batch


def own_rows(engine, array):
    """The rows of a batch that this process handed over, as the devices have them."""
    if engine.axis_name:
        return np.asarray(array).reshape(-1, *array.shape[2:])
    return np.asarray(array)[
        engine.local_slice(len(array))
    ]  # the mesh's step shows the whole batch


def main(port, count, number, folder):
    """Every road, engine and start; a file for each."""
    if count > 1:
        DistributedConfig(True, f"127.0.0.1:{port}", count, number).join()
        told = broadcast_tree(TREE if number == 0 else jax.tree.map(np.zeros_like, TREE))
        np.savez(folder / f"told-{number}.npz", **told)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (50, 3, 3, 1), np.uint8)
    splits = {
        "memory": InMemorySplit(pixels, rng.integers(0, 9, 50).astype(np.int32)),
        "stream": load_dataset(f"folder:{folder / 'set'}", image_size=8, seed=3).train,
    }
    roads = [("memory", host_feed, 0), ("memory", device_feed, 0)]
    roads += [("stream", host_feed, workers) for workers in (0, 2)]
    for parallel in ("pmap", "mesh"):
        engine = make_engine(parallel)
        for kind, feed, workers in roads:
            for start in STARTS:
                config = default_config()
                config.seed, config.batch_size, config.data.num_workers = 5, 16, workers
                advance = feed(engine, counted, splits[kind], config, start, start + STEPS)
                state = engine.put_state(TrainState(jnp.int32(start), jnp.uint32(0), {}, {}, {}))
                seen = []
                for _ in range(STEPS):
                    state, batch = advance(state)
                    seen.append({key: own_rows(engine, value) for key, value in batch.items()})
                name = f"{parallel}-{kind}-{feed.__name__}-{workers}-{start}-{count}-{number}.npz"
                np.savez(folder / name, **{k: np.stack([s[k] for s in seen]) for k in seen[0]})


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), Path(sys.argv[4]))
