"""Gradient accumulation: one update from several micro-batches."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.modules import random_batch

from resflax import UserError, create_model
from resflax.nn.batch_norm import BatchNorm
from resflax.train import create_state, make_engine, make_optimizer, make_train_step
from resflax.train.accumulate import check_micro_batches

SHAPE = (2, 1, 1)


class InputNormNet(nn.Module):
    """Batch norm of the images themselves, and a layer."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, *, train):
        x = BatchNorm(train=train, axis_name=self.axis_name, name="norm")(x.reshape(len(x), -1))
        return nn.Dense(3, name="head")(jnp.square(x))


@pytest.mark.slow
def test_without_batch_norm_micro_batches_only_save_memory():
    """Group norm in place of batch norm, with momentum and weight decay, over three steps."""
    small = {"depths": (1,), "widths": (32,), "stem_width": 32, "num_classes": 3}
    model = create_model("cifar_resnet8", norm="group", **small)
    optimizer = make_optimizer("sgd", 0.1, weight_decay=1e-2)
    initial = create_state(model, optimizer, 0, (8, 8, 1))
    batch, results, memory = random_batch(64, (8, 8, 1)), {}, {}
    for count in (1, 4):
        step = make_train_step(model, optimizer, grad_accum_steps=count)
        compiled = jax.jit(step).lower(initial, batch).compile()
        memory[count] = compiled.memory_analysis().temp_size_in_bytes
        state, all_metrics = initial, []
        for _ in range(3):
            state, metrics = compiled(state, batch)
            all_metrics.append(metrics)
        results[count] = jax.device_get((state, all_metrics))
    assert results[1][1][-1]["loss"] < results[1][1][0]["loss"]
    assert int(results[4][0].step) == 3
    for a, b in zip(*(jax.tree.leaves(results[count]) for count in (1, 4)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert memory[4] < 0.5 * memory[1]


@pytest.mark.slow
def test_batch_norm_normalizes_and_averages_each_micro_batch():
    """Micro-batch k has every third example from k on; each updates the running averages."""
    batch, optimizer = random_batch(12, SHAPE), optax.sgd(0.0)
    initial = create_state(InputNormNet(), optimizer, 0, SHAPE)
    step = jax.jit(make_train_step(InputNormNet(), optimizer, grad_accum_steps=3))
    state, metrics = step(initial, batch)
    x = batch["image"].reshape(12, 2).astype(np.float64)
    mean, var, losses = np.zeros(2), np.ones(2), []
    for part in (slice(k, None, 3) for k in range(3)):
        mean, var = 0.9 * mean + 0.1 * x[part].mean(0), 0.9 * var + 0.1 * x[part].var(0)
        y = (x[part] - x[part].mean(0)) / np.sqrt(x[part].var(0) + 1e-5)
        z = y**2 @ np.asarray(initial.params["head"]["kernel"], np.float64)
        z -= np.log(np.exp(z).sum(-1, keepdims=True))
        losses.append(-z[np.arange(4), batch["label"][part]].mean())
    np.testing.assert_allclose(state.batch_stats["norm"]["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(state.batch_stats["norm"]["var"], var, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)


def train(name, devices):
    """Takes three steps of two micro-batches on `devices` devices."""
    engine = make_engine(name, jax.devices()[:devices])
    optimizer = make_optimizer("sgd", 0.5)
    step = make_train_step(
        InputNormNet(), optimizer, grad_accum_steps=2, ema_decay=0.9, axis_name=engine.axis_name
    )
    step = engine.compile_train(step)
    state = engine.put_state(create_state(InputNormNet(), optimizer, 0, SHAPE, ema=True))
    for _ in range(3):
        state, metrics = step(state, engine.shard_batch(random_batch(32, SHAPE)))
    return engine.to_host((state, metrics))


@pytest.fixture(scope="module")
def one_device():
    return train("mesh", 1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "devices"), [("pmap", 1), ("pmap", 4), ("pmap", 8), ("mesh", 8)])
def test_micro_batches_do_not_depend_on_the_device_count(one_device, name, devices):
    """With contiguous micro-batches the statistics alone would differ by a tenth."""
    for a, b in zip(*map(jax.tree.leaves, (train(name, devices), one_device)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("batch_size", "hint"), [(120, "use 96 or 128"), (16, "use 32"), (33, "use 32 or 64")]
)
def test_batches_must_split_into_equal_micro_batches(batch_size, hint):
    check_micro_batches(64, 8, 4)
    message = (
        f"batch_size {batch_size} is not a multiple of 8 devices times grad_accum_steps 4: {hint}"
    )
    with pytest.raises(UserError, match=message):
        check_micro_batches(batch_size, 8, 4)


def test_steps_reject_micro_batches_of_unequal_size():
    optimizer = optax.sgd(0.1)
    step = make_train_step(InputNormNet(), optimizer, grad_accum_steps=4)
    with pytest.raises(ValueError, match="6 examples cannot be split into 4 micro-batches"):
        step(create_state(InputNormNet(), optimizer, 0, SHAPE), random_batch(6, SHAPE))
