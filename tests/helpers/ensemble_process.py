"""One of several processes: `python -m helpers.ensemble_process PORT COUNT INDEX FOLDER`.

Trains an ensemble for a few steps on every mesh, and saves its losses and parameters in the
folder. A separate program, since JAX must connect processes before it does anything else.
"""

import sys
from pathlib import Path

import jax
import numpy as np
import optax

from helpers.modules import NormNet
from resflax.data import InMemorySplit
from resflax.distributed import DistributedConfig, EnsembleEngine
from resflax.train import create_state, default_config, make_train_step, stack_states
from resflax.train.input_pipeline import make_device_step_fn, make_host_step_fn

SIZE, STEPS = 4, 3
MEMBER_DEVICES = (4, 2, 1)
PIPELINES = {"host": make_host_step_fn, "device": make_device_step_fn}


def main(port, count, index, folder):
    """Saves a file for every mesh and input pipeline."""
    if count > 1:
        DistributedConfig(True, f"127.0.0.1:{port}", count, index).initialize()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (50, 3, 3, 1), np.uint8)
    split = InMemorySplit(pixels, rng.integers(0, 9, 50).astype(np.int32))
    config, optimizer = default_config(), optax.sgd(0.1, momentum=0.9)
    config.batch_size, config.ensemble.size = 16, SIZE
    states = [create_state(NormNet(), optimizer, seed, split.image_shape) for seed in range(SIZE)]
    states = jax.device_get(stack_states(states))
    for member_devices in MEMBER_DEVICES:
        engine = EnsembleEngine(None, SIZE, member_devices=member_devices)
        step = make_train_step(
            NormNet(),
            optimizer,
            normalize=lambda images: images.astype(np.float32) / np.float32(255),
            axis_name=engine.axis_name,
        )
        for name, make in PIPELINES.items():
            run, state, losses = make(engine, step, split, config, 0, STEPS), states, []
            state = engine.put_state(state)
            for _ in range(STEPS):
                state, metrics = run(state)
                losses.append(engine.to_host(metrics)["loss"])
            params = np.concatenate(
                [np.reshape(x, (SIZE, -1)) for x in jax.tree.leaves(engine.to_host(state.params))],
                axis=1,
            )
            path = folder / f"{member_devices}-{name}-{count}-{index}.npz"
            np.savez(path, losses=np.stack(losses), params=params)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), Path(sys.argv[4]))
