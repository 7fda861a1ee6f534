"""The device count does not change the result of training."""

from functools import partial

import jax
import numpy as np
import pytest
from helpers.modules import NormNet
from helpers.trees import to_float64

from resflax import create_model
from resflax.data import load_dataset, make_augment, normalize, train_batches
from resflax.distributed.engines import ENGINES
from resflax.train import (
    create_state,
    default_config,
    make_engine,
    make_optimizer,
    make_train_step,
)
from resflax.train.builders import (
    build_normalizer,
    build_optimizer,
    build_schedule,
    build_train_step,
)
from resflax.train.input_pipeline import make_device_step_fn
from resflax.train.run import build_state

STEPS = 20


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def train(digits, name, devices, model, fsdp=1, prepare=lambda state: state):
    """Takes 20 steps with augmentation, momentum and weight decay; returns losses and state."""
    engine = make_engine(name, jax.devices()[:devices], fsdp=fsdp)
    mean, std = digits.train.mean_std()
    optimizer = make_optimizer("sgd", 0.2, weight_decay=1e-4)
    step = make_train_step(
        model,
        optimizer,
        augment=make_augment(pad_crop=1),
        normalize=partial(normalize, mean=mean, std=std),
        axis_name=engine.axis_name,
    )
    step = engine.compile_train(step)
    state = engine.put_state(prepare(create_state(model, optimizer, 0, digits.image_shape)))
    losses = []
    for batch in train_batches(digits.train, seed=0, batch_size=64, start=0, stop=STEPS):
        state, metrics = step(state, engine.shard_batch(batch))
        losses.append(float(engine.to_host(metrics)["loss"]))
    return np.array(losses), engine.to_host(state)


@pytest.fixture(scope="module")
def model():
    return create_model("cifar_resnet8")


@pytest.fixture(scope="module")
def one_device(digits, model):
    return train(digits, "mesh", 1, model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "devices"), [("pmap", 1), ("pmap", 8), ("mesh", 8), ("mesh", 2), ("shard_map", 8)]
)
def test_losses_and_statistics_do_not_depend_on_device_count(
    digits, model, one_device, name, devices
):
    expected, expected_state = one_device
    losses, state = train(digits, name, devices, model)
    assert len(losses) == STEPS
    assert expected[-1] < 0.97 * expected[0]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    for a, b in zip(
        jax.tree.leaves(state.batch_stats), jax.tree.leaves(expected_state.batch_stats), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_float64_parameters_differ_by_rounding_only(digits):
    """This shows that the differences between device counts in float32 are rounding too."""
    with jax.enable_x64(True):
        model = create_model("cifar_resnet8", dtype="float64")
        _, expected = train(digits, "mesh", 1, model, prepare=to_float64)
        for name, devices, fsdp in (("pmap", 8, 1), ("mesh", 8, 1), ("mesh", 4, 2)):
            _, state = train(digits, name, devices, model, fsdp, to_float64)
            for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
                assert a.dtype == b.dtype != np.float32
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.max(np.abs(b)))


def make_config():
    """Uses crops, erasing, pairs of examples, random networks and micro-batches."""
    config = default_config()
    config.model, config.batch_size, config.grad_accum_steps = "cifar_resnet8", 32, 2
    config.learning_rate, config.schedule = 0.02, "constant"
    config.data.pad_crop, config.data.alternating_flip = 1, True
    config.data.cutout, config.data.random_erasing = 2, 0.5
    config.data.mixup, config.data.cutmix = 0.4, 1.0
    return config


def train_with_random_steps(digits, name, devices):
    """Takes three steps; returns their losses."""
    config = make_config()
    model = create_model(config.model, num_classes=10, drop_path=0.3, drop_block=0.2, dropout=0.2)
    engine = make_engine(name, jax.devices()[:devices])
    optimizer = build_optimizer(config, build_schedule(config, len(digits.train)))
    normalizer = build_normalizer(digits.train)
    step = build_train_step(config, model, optimizer, normalizer, axis_name=engine.axis_name)
    step_fn = make_device_step_fn(engine, step, digits.train, config, 0, 3)
    state = engine.put_state(build_state(config, model, optimizer, digits.image_shape))
    losses = []
    for _ in range(3):
        state, metrics = step_fn(state)
        losses.append(float(engine.to_host(metrics)["loss"]))
    return np.array(losses)


@pytest.fixture(scope="module")
def one_device_losses(digits):
    return train_with_random_steps(digits, "mesh", 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_random_numbers_do_not_depend_on_the_device_count(digits, one_device_losses, name):
    np.testing.assert_allclose(
        train_with_random_steps(digits, name, 8), one_device_losses, rtol=1e-5
    )


def test_dense_network_has_the_same_losses_on_eight_devices(digits):
    """The fast form of the slow tests above."""
    expected, _ = train(digits, "mesh", 1, NormNet())
    for name in ENGINES:
        np.testing.assert_allclose(train(digits, name, 8, NormNet())[0], expected, rtol=1e-4)
