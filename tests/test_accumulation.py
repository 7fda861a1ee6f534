"""One update from several micro-batches."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resflax import UserError, create_model
from resflax.nn.batch_norm import BatchNorm
from resflax.train import create_state, make_engine, make_optimizer, make_train_step
from resflax.train.accumulate import check_micro_batches


def batch(n, shape=(8, 8, 1)):
    rng = np.random.default_rng(0)
    return {
        "image": rng.standard_normal((n, *shape)).astype(np.float32),
        "label": rng.integers(0, 3, n).astype(np.int32),
        "index": np.arange(n, dtype=np.int32),
    }


class Normed(nn.Module):
    """Batch norm of the images themselves, and a layer."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, *, train):
        x = BatchNorm(train=train, axis_name=self.axis_name, name="norm")(x.reshape(len(x), -1))
        return nn.Dense(3, name="head")(jnp.square(x))


def test_without_batch_norm_it_is_the_whole_batch_in_less_memory():
    """Group norm in the place of batch norm, with momentum and weight decay, over three steps."""
    small = {"depths": (1,), "widths": (32,), "stem_width": 32, "num_classes": 3}
    model = create_model("cifar_resnet8", norm="group", **small)
    optimizer = make_optimizer("sgd", 0.1, weight_decay=1e-2)
    first = create_state(model, optimizer, 0, (8, 8, 1))
    data, states, memory = batch(64), {}, {}
    for count in (1, 4):
        step = make_train_step(model, optimizer, grad_accum_steps=count)
        compiled = jax.jit(step).lower(first, data).compile()
        memory[count] = compiled.memory_analysis().temp_size_in_bytes
        state, losses = first, []
        for _ in range(3):
            state, metrics = compiled(state, data)
            losses.append(metrics)
        states[count] = jax.device_get((state, losses))
    assert states[1][1][-1]["loss"] < states[1][1][0]["loss"]
    assert int(states[4][0].step) == 3
    for a, b in zip(*(jax.tree.leaves(states[count]) for count in (1, 4)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert memory[4] < 0.5 * memory[1]


def test_batch_norm_sees_every_kth_example_and_moves_k_times():
    data, optimizer = batch(12, (2, 1, 1)), optax.sgd(0.0)
    first = create_state(Normed(), optimizer, 0, (2, 1, 1))
    step = jax.jit(make_train_step(Normed(), optimizer, grad_accum_steps=3))
    state, metrics = step(first, data)
    x = data["image"].reshape(12, 2).astype(np.float64)
    mean, var, losses = np.zeros(2), np.ones(2), []
    for part in (slice(k, None, 3) for k in range(3)):
        mean, var = 0.9 * mean + 0.1 * x[part].mean(0), 0.9 * var + 0.1 * x[part].var(0)
        y = (x[part] - x[part].mean(0)) / np.sqrt(x[part].var(0) + 1e-5)
        z = y**2 @ np.asarray(first.params["head"]["kernel"], np.float64)
        z -= np.log(np.exp(z).sum(-1, keepdims=True))
        losses.append(-z[np.arange(4), data["label"][part]].mean())
    np.testing.assert_allclose(state.batch_stats["norm"]["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(state.batch_stats["norm"]["var"], var, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)


def trained(name, devices):
    """Three steps of two micro-batches on so many devices."""
    engine = make_engine(name, jax.devices()[:devices])
    optimizer = make_optimizer("sgd", 0.5)
    step = make_train_step(
        Normed(), optimizer, grad_accum_steps=2, ema_decay=0.9, axis_name=engine.axis_name
    )
    step = engine.compile_train(step)
    state = engine.replicate(create_state(Normed(), optimizer, 0, (2, 1, 1), ema=True))
    for _ in range(3):
        state, metrics = step(state, engine.shard_batch(batch(32, (2, 1, 1))))
    return engine.to_host((state, metrics))


@pytest.fixture(scope="module")
def alone():
    return trained("mesh", 1)


@pytest.mark.parametrize(("name", "devices"), [("pmap", 1), ("pmap", 4), ("pmap", 8), ("mesh", 8)])
def test_the_device_count_changes_nothing(alone, name, devices):
    """Law 1; with consecutive micro-batches the statistics alone would differ in a tenth."""
    for a, b in zip(jax.tree.leaves(trained(name, devices)), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("batch_size", "hint"), [(120, "use 96 or 128"), (16, "use 32"), (33, "use 32 or 64")]
)
def test_a_batch_that_cannot_be_cut_alike_is_refused(batch_size, hint):
    check_micro_batches(64, 8, 4)
    message = (
        f"batch_size {batch_size} does not divide by 8 devices times grad_accum_steps 4: {hint}"
    )
    with pytest.raises(UserError, match=message):
        check_micro_batches(batch_size, 8, 4)


def test_a_step_refuses_micro_batches_of_unequal_size():
    optimizer = optax.sgd(0.1)
    step = make_train_step(Normed(), optimizer, grad_accum_steps=4)
    with pytest.raises(ValueError, match="6 examples cannot be cut into 4 micro-batches"):
        step(create_state(Normed(), optimizer, 0, (2, 1, 1)), batch(6, (2, 1, 1)))
