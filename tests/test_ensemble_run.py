"""A run of an ensemble: its members equal runs alone, and its files describe all of them."""

import jax
import numpy as np
import pytest

from resflax.data import load_dataset
from resflax.train import Trainer, build, default_config
from resflax.train.ensemble import member_config

DIGITS = load_dataset("digits")
LISTS = {
    "learning_rate": (0.02, 0.05, 0.1),
    "weight_decay": (0.0, 1e-4, 1e-3),
    "label_smoothing": (0.0, 0.1, 0.05),
    "mixup": (0.0, 0.2, 0.4),
    "drop_path": (0.1, 0.0, 0.2),
}


def make_config(size=3, **keys):
    config = default_config()
    config.model, config.batch_size, config.epochs = "cifar_resnet8", 32, 2
    config.warmup_epochs, config.data.pad_crop, config.ensemble.size = 0.2, 1, size
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in keys.items()})
    return config


def initial_params_and_losses(config, steps):
    """Returns the initial parameters, and the losses of each step."""
    run = build(config, dataset=DIGITS)
    trainer, initial = Trainer(run), run.init()
    state, losses = run.engine.put_state(initial), []
    step_fn = trainer.make_step_fn(0)
    for _ in range(steps):
        state, metrics = step_fn(state)
        losses.append(run.engine.to_host(metrics)["loss"])
    return jax.device_get(initial.params), np.array(losses)


@pytest.mark.slow
def test_members_equal_the_runs_alone():
    config = make_config(**{f"ensemble__{name}": values for name, values in LISTS.items()})
    stacked, losses = initial_params_and_losses(config, 50)
    for k in range(3):
        params, expected = initial_params_and_losses(member_config(config, k), 50)
        jax.tree.map(lambda x, y, k=k: np.testing.assert_array_equal(x[k], y), stacked, params)
        np.testing.assert_allclose(losses[:, k], expected, rtol=1e-4)
    assert len(np.unique(losses[-1])) == 3
