"""The device count does not change results of a step with random numbers."""

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
from resflax.train.input_pipeline import make_device_step_fn

STEPS = 3


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def make_config():
    """Uses crops, erasing, pairs of examples, random networks and micro-batches."""
    config = default_config()
    config.model, config.batch_size, config.grad_accum_steps = "cifar_resnet8", 32, 2
    config.learning_rate, config.schedule = 0.02, "constant"
    config.data.pad_crop, config.data.alternating_flip = 1, True
    config.data.cutout, config.data.random_erasing = 2, 0.5
    config.data.mixup, config.data.cutmix = 0.4, 1.0
    return config


def train(digits, name, devices, **fields):
    """Returns the losses of a few steps."""
    config = make_config()
    model = create_model(config.model, num_classes=10, drop_path=0.3, dropout=0.2, **fields)
    engine = make_engine(name, jax.devices()[:devices])
    optimizer = build_optimizer(config, build_schedule(config, len(digits.train)))
    normalizer = build_normalizer(digits.train)
    step, _ = build_steps(config, model, optimizer, normalizer, axis_name=engine.axis_name)
    step_fn = make_device_step_fn(engine, step, digits.train, config, 0, STEPS)
    state = engine.put_state(build_state(config, model, optimizer, digits.image_shape))
    losses = []
    for _ in range(STEPS):
        state, metrics = step_fn(state)
        losses.append(float(engine.to_host(metrics)["loss"]))
    return np.array(losses)


@pytest.fixture(scope="module")
def one_device(digits):
    return train(digits, "mesh", 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pmap", "mesh"])
def test_random_numbers_do_not_depend_on_the_device_count(digits, one_device, name):
    np.testing.assert_allclose(train(digits, name, 8), one_device, rtol=1e-5)


def test_random_numbers_of_a_small_network_are_the_same(digits):
    """The fast form of the slow test above: one block, on one engine."""
    small = {"depths": (1,), "widths": (4,), "stem_width": 4}
    expected = train(digits, "mesh", 1, **small)
    np.testing.assert_allclose(train(digits, "mesh", 4, **small), expected, rtol=1e-5)
