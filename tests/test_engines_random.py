"""Law 1 where the step draws random numbers: they belong to examples, not to devices."""

import jax
import numpy as np
import pytest

from resflax import create_model
from resflax.data import load_dataset
from resflax.train import default_config, make_engine
from resflax.train.builders import (
    build_normalizer,
    build_optimizer,
    build_schedule,
    build_state,
    build_steps,
)
from resflax.train.input_pipeline import device_feed

STEPS = 3


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def config():
    """Everything that draws: places, what is taken away, pairs, blocks, features; micro-batches."""
    config = default_config()
    config.model, config.batch_size, config.grad_accum_steps = "cifar_resnet8", 32, 2
    config.learning_rate, config.schedule = 0.02, "constant"
    config.data.pad_crop, config.data.alternating_flip = 1, True
    config.data.cutout, config.data.random_erasing = 2, 0.5
    config.data.mixup, config.data.cutmix = 0.4, 1.0
    return config


def losses(digits, config, name, devices):
    model = create_model(config.model, num_classes=10, drop_path=0.3, dropout=0.2)
    engine = make_engine(name, jax.devices()[:devices])
    optimizer = build_optimizer(config, build_schedule(config, len(digits.train)))
    to_input = build_normalizer(digits.train)
    step, _ = build_steps(config, model, optimizer, to_input, axis_name=engine.axis_name)
    advance = device_feed(engine, step, digits.train, config, 0, STEPS)
    state = engine.replicate(build_state(config, model, optimizer, digits.image_shape))
    found = []
    for _ in range(STEPS):
        state, metrics = advance(state)
        found.append(float(engine.to_host(metrics)["loss"]))
    return np.array(found)


@pytest.fixture(scope="module")
def one_device(digits, config):
    return losses(digits, config, "mesh", 1)


@pytest.mark.parametrize("name", ["pmap", "mesh"])
def test_what_is_drawn_does_not_depend_on_the_device_count(digits, config, one_device, name):
    np.testing.assert_allclose(losses(digits, config, name, 8), one_device, rtol=1e-5)
