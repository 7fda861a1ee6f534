"""The training step against gradients written out in NumPy and float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.modules import LinearClassifier, random_batch, softmax

from resflax import create_model
from resflax.train import create_state, make_optimizer, make_schedule, make_train_step
from resflax.train.optimizers import OPTIMIZERS

SHAPE = (2, 2, 1)
TINY = {"depths": (1,), "widths": (8,), "stem_width": 8}


def init(optimizer, **kwargs):
    return create_state(LinearClassifier(), optimizer, 0, SHAPE, **kwargs)


def float64_kernel(state):
    return np.asarray(state.params["head"]["kernel"], np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_step_equals_the_closed_form_of_softmax_regression(smoothing):
    optimizer = optax.sgd(0.5)
    state, batch = init(optimizer), random_batch()
    x = batch["image"].reshape(6, 4).astype(np.float64)
    W = float64_kernel(state)
    target = np.eye(3)[batch["label"]] * (1 - smoothing) + smoothing / 3
    p = softmax(x @ W)
    step = make_train_step(LinearClassifier(), optimizer, label_smoothing=smoothing)
    new, metrics = step(state, batch)
    np.testing.assert_allclose(
        new.params["head"]["kernel"], W - 0.5 * x.T @ (p - target) / 6, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        new.params["head"]["bias"], -0.5 * (p - target).mean(0), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(metrics["loss"], -(target * np.log(p)).sum(-1).mean(), rtol=1e-5)
    np.testing.assert_allclose(
        metrics["accuracy"], (p.argmax(-1) == batch["label"]).mean(), rtol=1e-6
    )
    assert int(new.step) == 1


def random_targets(n=6):
    target = np.random.default_rng(3).uniform(size=(n, 3))
    return (target / target.sum(1, keepdims=True)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_step_on_soft_targets_equals_the_closed_form(smoothing, count):
    optimizer = optax.sgd(0.5)
    state, batch = init(optimizer), random_batch() | {"target": random_targets()}
    step = make_train_step(
        LinearClassifier(), optimizer, label_smoothing=smoothing, grad_accum_steps=count
    )
    new, metrics = step(state, batch)
    x = batch["image"].reshape(6, 4).astype(np.float64)
    W = float64_kernel(state)
    target, p = batch["target"] * (1 - smoothing) + smoothing / 3, softmax(x @ W)
    np.testing.assert_allclose(
        new.params["head"]["kernel"], W - 0.5 * x.T @ (p - target) / 6, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(metrics["loss"], -(target * np.log(p)).sum(-1).mean(), rtol=1e-5)
    correct = p.argmax(-1) == batch["label"]
    np.testing.assert_allclose(metrics["accuracy"], correct.mean(), rtol=1e-6)
    del batch["label"]
    correct = p.argmax(-1) == batch["target"].argmax(-1)
    np.testing.assert_allclose(step(state, batch)[1]["accuracy"], correct.mean(), rtol=1e-6)


@pytest.mark.slow
def test_step_is_pure_and_updates_all_batch_statistics():
    model, optimizer = create_model("cifar_resnet8", num_classes=3), optax.sgd(0.1)
    state = create_state(model, optimizer, 0, (8, 8, 1))
    before = jax.tree.map(np.array, state)
    batch = random_batch(6, (8, 8, 1))
    step = jax.jit(make_train_step(model, optimizer))
    first, _ = step(state, batch)
    second, _ = step(state, batch)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    jax.tree.map(np.testing.assert_array_equal, before, state)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), first.batch_stats, state.batch_stats)
    assert all(jax.tree.leaves(changed))
    assert set(changed) == {"stem_norm", *(f"stage{i}_block1" for i in (1, 2, 3))}


@pytest.mark.slow
def test_initial_state_is_a_function_of_the_seed():
    model, optimizer = create_model("cifar_resnet8", **TINY), optax.sgd(0.1)
    one, same, other = (create_state(model, optimizer, s, (8, 8, 1)) for s in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    kernels = [state.params["stem_conv"]["kernel"] for state in (one, other)]
    assert (kernels[0] != kernels[1]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_types_do_not_change_under_strict_promotion(name):
    """Otherwise the step could not be scanned, and would be compiled again."""
    schedule = make_schedule("cosine", peak=0.1, steps=10, warmup_steps=2)
    optimizer = make_optimizer(name, schedule, weight_decay=0.1, grad_clip=1.0)
    state, batch = init(optimizer, ema=True), random_batch()
    step = make_train_step(LinearClassifier(), optimizer, grad_accum_steps=2, ema_decay=0.9)
    last, metrics = jax.lax.scan(lambda state, _: step(state, batch), state, None, length=3)
    assert int(last.step) == 3
    assert metrics["loss"].shape == (3,)


def test_float64_keeps_parameters_and_statistics_in_float32():
    with jax.enable_x64(True):
        model, optimizer = create_model("cifar_resnet8", dtype="float64"), optax.sgd(0.1)
        batch = {"image": np.zeros((4, 8, 8, 1)), "label": np.zeros(4, np.int32)}
        state = jax.eval_shape(lambda: create_state(model, optimizer, 0, (8, 8, 1)))
        new, _ = jax.eval_shape(make_train_step(model, optimizer), state, batch)
    dtypes = {x.dtype for x in jax.tree.leaves((new.params, new.batch_stats))}
    assert dtypes == {np.dtype("float32")}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("count", [1, 2])
def test_bfloat16_keeps_the_whole_state_in_float32(name, count):
    schedule = make_schedule("cosine", peak=0.1, steps=10)
    optimizer = make_optimizer(name, schedule, weight_decay=0.1, grad_clip=1.0)
    model = create_model("cifar_resnet8", dtype="bfloat16")
    step = make_train_step(model, optimizer, grad_accum_steps=count, ema_decay=0.9)

    def run():
        state = create_state(model, optimizer, 0, (8, 8, 1), ema=True)
        batch = {"image": jnp.zeros((4, 8, 8, 1)), "label": jnp.zeros(4, jnp.int32)}
        return state.opt_state, step(state, batch)

    old_opt_state, (state, metrics) = jax.eval_shape(run)
    floats = state.params, state.batch_stats, state.ema, metrics
    assert {leaf.dtype for leaf in jax.tree.leaves(floats)} == {np.dtype("float32")}
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(state.opt_state)]
    assert dtypes == [leaf.dtype for leaf in jax.tree.leaves(old_opt_state)]
    assert set(dtypes) <= {np.dtype("float32"), np.dtype("int32")}  # int32: counts
    assert jax.tree.structure(state.ema) == jax.tree.structure(state.params)


class ImageAsLogits(nn.Module):
    """Returns its images as bfloat16 logits."""

    @nn.compact
    def __call__(self, x, *, train):
        return (x[:, 0, 0] + self.param("w", nn.initializers.zeros, (3,))).astype(jnp.bfloat16)


@pytest.mark.slow
def test_loss_of_bfloat16_logits_is_computed_in_float32():
    logits = np.random.default_rng(0).normal(0, 4, (6, 1, 1, 3)).astype(jnp.bfloat16)
    batch = {"image": logits.astype(np.float32), "label": np.arange(6, dtype=np.int32) % 3}
    state = create_state(ImageAsLogits(), optax.sgd(0.1), 0, (1, 1, 3))
    _, metrics = make_train_step(ImageAsLogits(), optax.sgd(0.1))(state, batch)
    p = softmax(logits[:, 0, 0].astype(np.float64))
    np.testing.assert_allclose(
        metrics["loss"], -np.log(p[np.arange(6), batch["label"]]).mean(), rtol=1e-6
    )
