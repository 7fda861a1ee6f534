"""Law 1: the device count never changes the result."""

from functools import partial

import jax
import numpy as np
import optax
import pytest

from resflax import UserError, create_model
from resflax.data import load_dataset, make_augment, normalize, train_batches
from resflax.train import create_state, make_engine, make_eval_step, make_optimizer, make_train_step

STEPS = 20


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def wide(tree):
    """With float64 for float32."""
    return jax.tree.map(
        lambda x: np.asarray(x, np.float64 if x.dtype == np.float32 else None), tree
    )


def trained(digits, name, devices, model, fsdp=1, prepare=lambda state: state):
    """The losses of 20 steps, with augmentation, momentum and weight decay; and the state."""
    engine = make_engine(name, jax.devices()[:devices], fsdp=fsdp)
    mean, std = digits.train.mean_std()
    optimizer = make_optimizer("sgd", 0.2, weight_decay=1e-4)
    step = make_train_step(
        model,
        optimizer,
        augment=make_augment(padding=1),
        normalize=partial(normalize, mean=mean, std=std),
        axis_name=engine.axis_name,
    )
    step = engine.compile_train(step)
    state = engine.put_state(prepare(create_state(model, optimizer, 0, digits.image_shape)))
    found = []
    for batch in train_batches(digits.train, seed=0, batch_size=64, start=0, stop=STEPS):
        state, metrics = step(state, engine.shard_batch(batch))
        found.append(float(engine.to_host(metrics)["loss"]))
    return np.array(found), engine.to_host(state)


@pytest.fixture(scope="module")
def model():
    return create_model("cifar_resnet8")


@pytest.fixture(scope="module")
def one_device(digits, model):
    return trained(digits, "mesh", 1, model)


@pytest.mark.parametrize(("name", "devices"), [("pmap", 1), ("pmap", 8), ("mesh", 8), ("mesh", 2)])
def test_losses_and_statistics_do_not_depend_on_the_device_count(
    digits, model, one_device, name, devices
):
    expected, expected_state = one_device
    found, state = trained(digits, name, devices, model)
    assert len(found) == STEPS
    assert expected[-1] < 0.97 * expected[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    for a, b in zip(
        jax.tree.leaves(state.batch_stats), jax.tree.leaves(expected_state.batch_stats), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_in_float64_devices_change_no_parameter_by_more_than_its_rounding(digits):
    """So what other devices change in float32 is its rounding, and nothing else."""
    with jax.enable_x64(True):
        model = create_model("cifar_resnet8", dtype="float64")
        _, expected = trained(digits, "mesh", 1, model, prepare=wide)
        for name, devices, fsdp in (("pmap", 8, 1), ("mesh", 8, 1), ("mesh", 4, 2)):
            _, state = trained(digits, name, devices, model, fsdp, wide)
            for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
                assert a.dtype == b.dtype != np.float32
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.max(np.abs(b)))


@pytest.mark.parametrize("name", ["pmap", "mesh"])
def test_a_step_goes_by_the_mean_gradient_over_all_devices(name):
    """Loss w * x by hand: one example a device, gradient their mean."""
    import flax.linen as nn

    class Scale(nn.Module):
        axis_name: str | None = None

        @nn.compact
        def __call__(self, x, *, train):
            w = self.param("w", nn.initializers.ones, (2,))
            return x.reshape(len(x), -1) * w

    engine = make_engine(name)
    optimizer = optax.sgd(1.0)
    x = np.arange(16, dtype=np.float32).reshape(8, 2, 1, 1) / 10
    batch = {"image": x, "label": np.zeros(8, np.int32)}
    step = engine.compile_train(make_train_step(Scale(), optimizer, axis_name=engine.axis_name))
    state = engine.replicate(create_state(Scale(), optimizer, 0, (2, 1, 1)))
    state, _ = step(state, engine.shard_batch(batch))
    z = x.reshape(8, 2).astype(np.float64)
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    gradient = ((p - [1, 0]) * z).mean(0)
    np.testing.assert_allclose(engine.to_host(state).params["w"], 1 - gradient, rtol=1e-5)


@pytest.mark.parametrize("name", ["pmap", "mesh"])
def test_evaluation_sums_over_all_devices(name, model):
    engine = make_engine(name)
    state = create_state(model, optax.sgd(0.1), 0, (8, 8, 1))
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.standard_normal((16, 8, 8, 1)).astype(np.float32),
        "label": rng.integers(0, 10, 16).astype(np.int32),
        "weight": (np.arange(16) < 11).astype(np.float32),
    }
    expected = make_eval_step(model)(state, batch)
    step = engine.compile_eval(make_eval_step(model, axis_name=engine.axis_name))
    sums = engine.to_host(step(engine.replicate(state), engine.shard_batch(batch)))
    assert sums["count"] == 11
    for key, value in expected.items():
        np.testing.assert_allclose(sums[key], value, rtol=1e-5)


@pytest.mark.parametrize("name", ["pmap", "mesh"])
def test_replicate_and_fetch_are_inverse(name):
    engine = make_engine(name)
    tree = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.uint32(7)}
    back = engine.to_host(engine.replicate(tree))
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    assert back["b"].dtype == np.uint32


@pytest.mark.parametrize(
    ("batch_size", "hint"), [(50, "use 48 or 56"), (3, "use 8"), (9, "use 8 or 16")]
)
def test_a_batch_that_the_devices_cannot_share_is_refused(batch_size, hint):
    with pytest.raises(
        UserError, match=f"batch_size {batch_size} does not divide by 8 devices: {hint}"
    ):
        make_engine("pmap").check_batch(batch_size)


@pytest.mark.parametrize("name", ["pmap", "mesh"])
def test_split_refuses_parts_of_unequal_size(name):
    with pytest.raises(UserError, match="batch_size 12 does not divide by 8 devices: use 8 or 16"):
        make_engine(name).split({"image": np.zeros((12, 4)), "label": np.zeros(12)})


def test_an_unknown_engine_is_refused():
    with pytest.raises(UserError, match="unknown parallel 'pmapp': expected one of pmap, mesh"):
        make_engine("pmapp")
