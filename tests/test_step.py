"""The step against gradients written out in NumPy and float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resflax import create_model
from resflax.data import make_augment
from resflax.train import (
    create_state,
    make_engine,
    make_eval_step,
    make_optimizer,
    make_schedule,
    make_train_step,
)
from resflax.train.metrics import correct, cross_entropy
from resflax.train.optim import OPTIMIZERS
from resflax.train.step import example_keys


class Linear(nn.Module):
    """Softmax regression: its gradient has a closed form."""

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(3)(x.reshape(len(x), -1))


def batch(n=6, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.standard_normal((n, 2, 2, 1)).astype(np.float32),
        "label": rng.integers(0, 3, n).astype(np.int32),
        "index": np.arange(n, dtype=np.int32),
    }


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_one_step_of_softmax_regression_is_its_closed_form(smoothing):
    optimizer = optax.sgd(0.5)
    state = create_state(Linear(), optimizer, 0, (2, 2, 1))
    data = batch()
    x = data["image"].reshape(6, 4).astype(np.float64)
    W = np.asarray(state.params["Dense_0"]["kernel"], np.float64)
    target = np.eye(3)[data["label"]] * (1 - smoothing) + smoothing / 3
    p = softmax(x @ W)
    new, metrics = make_train_step(Linear(), optimizer, label_smoothing=smoothing)(state, data)
    np.testing.assert_allclose(
        new.params["Dense_0"]["kernel"], W - 0.5 * x.T @ (p - target) / 6, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        new.params["Dense_0"]["bias"], -0.5 * (p - target).mean(0), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(metrics["loss"], -(target * np.log(p)).sum(-1).mean(), rtol=1e-5)
    np.testing.assert_allclose(
        metrics["accuracy"], (p.argmax(-1) == data["label"]).mean(), rtol=1e-6
    )
    assert int(new.step) == 1


def test_the_step_is_pure_and_moves_the_batch_statistics():
    model, optimizer = create_model("cifar_resnet8", num_classes=3), optax.sgd(0.1)
    state = create_state(model, optimizer, 0, (8, 8, 1))
    before = jax.tree.map(np.array, state)
    data = {
        **batch(),
        "image": np.random.default_rng(0).standard_normal((6, 8, 8, 1)).astype(np.float32),
    }
    step = jax.jit(make_train_step(model, optimizer))
    first, _ = step(state, data)
    again, _ = step(state, data)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    jax.tree.map(np.testing.assert_array_equal, before, state)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), first.batch_stats, state.batch_stats)
    assert all(jax.tree.leaves(moved))
    assert set(moved) == {"stem_norm", *(f"stage{i}_block1" for i in (1, 2, 3))}


def test_the_initial_state_is_a_function_of_the_seed():
    model, optimizer = create_model("cifar_resnet8"), optax.sgd(0.1)
    one, same, other = (create_state(model, optimizer, s, (8, 8, 1)) for s in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    kernel = lambda state: state.params["stem_conv"]["kernel"]  # noqa: E731
    assert (kernel(one) != kernel(other)).all()


def test_augmentation_depends_on_seed_step_and_example_alone():
    def bits(seed, step, index):
        keys = example_keys(jnp.uint32(seed), jnp.int32(step), jnp.asarray(index, jnp.int32))
        return np.asarray(jax.random.key_data(keys))

    whole = bits(3, 5, [7, 8, 9, 10])
    np.testing.assert_array_equal(whole[2:], bits(3, 5, [9, 10]))
    for different in (bits(4, 5, [7]), bits(3, 6, [7]), bits(3, 5, [8])):
        assert (different != whole[0]).any()


def test_the_step_augments_before_it_normalises():
    seen = []

    def augment(keys, images):
        seen.append(("augment", images.dtype, keys.shape))
        return make_augment(pad_crop=1)(keys, images)

    def normalize(images):
        seen.append(("normalize", images.dtype, images.shape))
        return images.astype(jnp.float32)

    optimizer = optax.sgd(0.1)
    data = {**batch(), "image": np.zeros((6, 2, 2, 1), np.uint8)}
    step = make_train_step(Linear(), optimizer, augment=augment, normalize=normalize)
    step(create_state(Linear(), optimizer, 0, (2, 2, 1)), data)
    assert seen == [("augment", jnp.uint8, (6,)), ("normalize", jnp.uint8, (6, 2, 2, 1))]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_states_type_is_a_fixed_point_under_strict_promotion(name):
    """So that the step can be scanned, and compiles once."""
    schedule = make_schedule("cosine", peak=0.1, steps=10, warmup_steps=2)
    optimizer = make_optimizer(name, schedule, weight_decay=0.1, grad_clip_norm=1.0)
    state = create_state(Linear(), optimizer, 0, (2, 2, 1), ema=True)
    step = make_train_step(Linear(), optimizer, grad_accum_steps=2, ema_decay=0.9)
    after, metrics = jax.lax.scan(lambda state, _: step(state, batch()), state, None, length=3)
    assert int(after.step) == 3
    assert metrics["loss"].shape == (3,)


def test_float64_keeps_its_parameters_and_statistics_in_float32():
    with jax.enable_x64(True):
        model, optimizer = create_model("cifar_resnet8", dtype="float64"), optax.sgd(0.1)
        state = create_state(model, optimizer, 0, (8, 8, 1))
        data = {"image": np.zeros((4, 8, 8, 1)), "label": np.zeros(4, np.int32)}
        after, _ = jax.eval_shape(make_train_step(model, optimizer), state, data)
    assert {x.dtype for x in jax.tree.leaves((after.params, after.batch_stats))} == {
        np.dtype("float32")
    }


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("count", [1, 2])
def test_bfloat16_keeps_all_that_is_kept_in_float32(name, count):
    schedule = make_schedule("cosine", peak=0.1, steps=10)
    optimizer = make_optimizer(name, schedule, weight_decay=0.1, grad_clip_norm=1.0)
    model = create_model("cifar_resnet8", dtype="bfloat16")
    step = make_train_step(model, optimizer, grad_accum_steps=count, ema_decay=0.9)

    def after():
        state = create_state(model, optimizer, 0, (8, 8, 1), ema=True)
        data = {"image": jnp.zeros((4, 8, 8, 1)), "label": jnp.zeros(4, jnp.int32)}
        return state.opt_state, step(state, data)

    before, (state, metrics) = jax.eval_shape(after)
    floats = state.params, state.batch_stats, state.ema, metrics
    assert {leaf.dtype for leaf in jax.tree.leaves(floats)} == {np.dtype("float32")}
    kinds = [leaf.dtype for leaf in jax.tree.leaves(state.opt_state)]
    assert kinds == [leaf.dtype for leaf in jax.tree.leaves(before)]
    assert set(kinds) <= {np.dtype("float32"), np.dtype("int32")}  # and counts
    assert jax.tree.structure(state.ema) == jax.tree.structure(state.params)


class Told(nn.Module):
    """Gives its images out as bfloat16 logits."""

    @nn.compact
    def __call__(self, x, *, train):
        return (x[:, 0, 0] + self.param("w", nn.initializers.zeros, (3,))).astype(jnp.bfloat16)


def test_the_loss_of_bfloat16_logits_is_computed_in_float32():
    logits = np.random.default_rng(0).normal(0, 4, (6, 1, 1, 3)).astype(jnp.bfloat16)
    data = {"image": logits.astype(np.float32), "label": np.arange(6, dtype=np.int32) % 3}
    state = create_state(Told(), optax.sgd(0.1), 0, (1, 1, 3))
    _, metrics = make_train_step(Told(), optax.sgd(0.1))(state, data)
    p = softmax(logits[:, 0, 0].astype(np.float64))
    np.testing.assert_allclose(
        metrics["loss"], -np.log(p[np.arange(6), data["label"]]).mean(), rtol=1e-6
    )


# Soft targets.


def soft(n=6):
    target = np.random.default_rng(3).uniform(size=(n, 3))
    return (target / target.sum(1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_one_step_on_soft_targets_is_its_closed_form(smoothing, count):
    optimizer = optax.sgd(0.5)
    state = create_state(Linear(), optimizer, 0, (2, 2, 1))
    data = batch() | {"target": soft()}
    step = make_train_step(Linear(), optimizer, label_smoothing=smoothing, grad_accum_steps=count)
    new, metrics = step(state, data)
    x = data["image"].reshape(6, 4).astype(np.float64)
    W = np.asarray(state.params["Dense_0"]["kernel"], np.float64)
    target, p = data["target"] * (1 - smoothing) + smoothing / 3, softmax(x @ W)
    np.testing.assert_allclose(
        new.params["Dense_0"]["kernel"], W - 0.5 * x.T @ (p - target) / 6, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(metrics["loss"], -(target * np.log(p)).sum(-1).mean(), rtol=1e-5)
    right = p.argmax(-1) == data["label"]
    np.testing.assert_allclose(metrics["accuracy"], right.mean(), rtol=1e-6)
    del data["label"]
    right = p.argmax(-1) == data["target"].argmax(-1)
    np.testing.assert_allclose(step(state, data)[1]["accuracy"], right.mean(), rtol=1e-6)


def test_a_mix_takes_what_the_network_would_and_labels_stay():
    """Each example with the next one, half and half, of a batch that is augmented."""

    def augment(keys, images):
        return images + 1

    def mix(keys, images, targets):
        assert keys.shape == (6,)
        np.testing.assert_array_equal(targets, np.eye(3)[data["label"]])
        np.testing.assert_allclose(images, 2 * (data["image"] + 1), rtol=1e-6)
        return (images + jnp.roll(images, 1, 0)) / 2, (targets + jnp.roll(targets, 1, 0)) / 2

    data, optimizer = batch(), optax.sgd(0.5)
    state = create_state(Linear(), optimizer, 0, (2, 2, 1))
    _, metrics = make_train_step(
        Linear(),
        optimizer,
        augment=augment,
        normalize=lambda images: 2 * images,
        mix=mix,
        num_classes=3,
        label_smoothing=0.1,
    )(state, data)
    x, hard = 2 * (data["image"].reshape(6, 4) + 1.0), np.eye(3)[data["label"]]
    p = softmax((x + np.roll(x, 1, 0)) / 2 @ np.asarray(state.params["Dense_0"]["kernel"]))
    smooth = hard * 0.9 + 0.1 / 3  # as timm: smoothed, then mixed
    target = (smooth + np.roll(smooth, 1, 0)) / 2
    np.testing.assert_allclose(metrics["loss"], -(target * np.log(p)).sum(-1).mean(), rtol=1e-5)
    right = (p.argmax(-1) == data["label"]).mean()
    np.testing.assert_allclose(metrics["accuracy"], right, rtol=1e-6)


def test_a_mix_without_the_number_of_classes_is_refused():
    with pytest.raises(ValueError, match="expected num_classes"):
        make_train_step(Linear(), optax.sgd(0.1), mix=lambda keys, images, targets: (images, 0))


class Drawing(nn.Module):
    """Gives the numbers that it draws out as logits."""

    axis_name: str | None = None
    needs_rng = True

    @nn.compact
    def __call__(self, x, *, train, keys):
        w = self.param("w", nn.initializers.zeros, (3,))
        return jax.vmap(lambda key: jax.random.normal(key, (3,), jnp.float32))(keys) + w


@pytest.mark.parametrize("count", [1, 3])
def test_a_network_that_draws_has_a_key_for_each_example(count):
    """Of its seed, step and number; in whatever micro-batch and on whatever device it is."""
    data, optimizer = batch(24), optax.sgd(0.1)
    first = {"params": {"w": jnp.zeros(3)}}
    state = create_state(Drawing(), optimizer, 5, (2, 2, 1), first)
    keys = example_keys(jnp.uint32(5), jnp.int32(0), data["index"])
    logits = [np.asarray(jax.random.normal(key, (3,), jnp.float32), np.float64) for key in keys]
    p = softmax(np.stack(logits))
    expected = -np.log(p[np.arange(24), data["label"]]).mean()
    step = make_train_step(Drawing(), optimizer, grad_accum_steps=count)
    np.testing.assert_allclose(step(state, data)[1]["loss"], expected, rtol=1e-5)
    engine = make_engine("pmap")
    step = make_train_step(Drawing(), optimizer, grad_accum_steps=count, axis_name=engine.axis_name)
    _, metrics = engine.compile_train(step)(engine.replicate(state), engine.shard_batch(data))
    np.testing.assert_allclose(engine.to_host(metrics)["loss"], expected, rtol=1e-5)


def test_the_alternating_flip_goes_by_the_epoch_of_the_batch():
    seen = []

    def normalize(images):
        seen.append(np.asarray(images))
        return images

    data, optimizer = batch(), optax.sgd(0.1)
    augment = make_augment(flip="alternating")
    step = make_train_step(Linear(), optimizer, augment=augment, normalize=normalize)
    state = create_state(Linear(), optimizer, 0, (2, 2, 1))
    for epoch in (0, 1):
        step(state, data | {"epoch": np.full(6, epoch, np.int32)})
    np.testing.assert_array_equal(seen[0], seen[1][:, :, ::-1])
    assert (seen[0] != seen[1]).any(axis=(1, 2, 3)).all()


def test_evaluation_sums_by_weight():
    state = create_state(Linear(), optax.sgd(0.1), 0, (2, 2, 1))
    data = batch(8)
    z = data["image"].reshape(8, 4) @ np.asarray(state.params["Dense_0"]["kernel"], np.float64)
    weight = np.array([1, 1, 1, 0, 1, 0, 1, 0], np.float32)
    loss = -np.log(softmax(z)[np.arange(8), data["label"]])
    sums = make_eval_step(Linear())(state, {**data, "weight": weight})
    np.testing.assert_allclose(sums["loss"], (weight * loss).sum(), rtol=1e-5)
    np.testing.assert_allclose(sums["correct"], (weight * (z.argmax(-1) == data["label"])).sum())
    assert float(sums["count"]) == 5


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_metrics_are_float32_whatever_the_logits(dtype):
    logits, labels = jnp.asarray([[2.0, 1.0], [0.0, 3.0]], dtype), jnp.asarray([0, 0])
    assert cross_entropy(logits, labels).dtype == jnp.float32
    np.testing.assert_array_equal(correct(logits, labels), np.float32([1, 0]))
    np.testing.assert_array_equal(correct(logits * jnp.nan, labels), np.float32([0, 0]))
