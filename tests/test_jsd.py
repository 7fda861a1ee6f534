"""AugMix's Jensen-Shannon loss: timm's numbers, the copies of a batch, and steps on them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.modules import LinearClassifier, random_batch

from resflax import UserError
from resflax.data import load_dataset, make_augment
from resflax.data.augment.splits import copy_keys, make_splits
from resflax.train import build, create_state, default_config, make_engine, make_train_step
from resflax.train.builders import build_normalizer
from resflax.train.config import build_splits
from resflax.train.jsd import add_jensen_shannon, jensen_shannon
from resflax.train.losses import cross_entropy
from resflax.train.step_inputs import example_keys

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 5, 8).astype(np.int32)
SETTINGS = {
    "pad_crop": 2, "inception_crop": (), "flip": "random", "shift": 0, "cutout": 3,
    "random_erasing": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("copies", [2, 3])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_equals_timms(copies, smoothing):
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm.loss")
    logits = RNG.standard_normal((8, copies, 5)).astype(np.float32)
    loss_fn = timm.JsdCrossEntropy(copies, alpha=12, smoothing=smoothing)
    by_copy = torch.from_numpy(logits.swapaxes(0, 1).reshape(-1, 5).copy()).requires_grad_()
    expected = loss_fn(by_copy, torch.from_numpy(np.tile(LABELS, copies)).long())
    expected.backward()

    def mean(x):
        def plain(logits, targets):
            return cross_entropy(logits, targets, smoothing)

        return add_jensen_shannon(plain, 12.0)(x, LABELS).mean()

    value, grad = jax.value_and_grad(mean)(logits)
    np.testing.assert_allclose(value, float(expected.detach()), rtol=1e-5)
    reference = by_copy.grad.numpy().reshape(copies, 8, 5).swapaxes(0, 1)
    np.testing.assert_allclose(grad, reference, rtol=1e-4, atol=1e-6)


def test_divergence_equals_equation_2_in_float64():
    logits = 4 * RNG.standard_normal((6, 3, 7))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    m = p.mean(1, keepdims=True)
    expected = (p * np.log(p / m)).sum(-1).mean(1)
    np.testing.assert_allclose(jensen_shannon(logits.astype(np.float32)), expected, rtol=1e-4)


def test_divergence_of_certain_or_equal_copies_is_finite():
    certain = jnp.array([[[500.0, -500.0], [-500.0, 500.0]]])
    equal = jnp.array([[[500.0, -500.0]] * 2])
    for logits, expected in ((certain, np.log(2)), (equal, 0.0)):
        value, grad = jax.value_and_grad(lambda x: jensen_shannon(x).sum())(logits)
        np.testing.assert_allclose(value, expected, atol=1e-6)
        assert np.isfinite(grad).all()


def test_first_copy_is_only_cropped_and_flipped():
    images = RNG.integers(1, 256, (6, 9, 9, 3), np.uint8)
    keys = example_keys(jnp.uint32(0), jnp.int32(3), jnp.arange(6, dtype=jnp.int32))
    copies = np.asarray(make_splits(3, SETTINGS)(keys, images))
    assert copies.shape == (6, 3, 9, 9, 3)
    cropped = make_augment(pad_crop=2, flip="random")(keys, images)
    np.testing.assert_array_equal(copies[:, 0], cropped)
    erase = make_augment(cutout=3, random_erasing=0.5)
    for k, row in enumerate(copy_keys(keys, 3)[1:], 1):
        np.testing.assert_array_equal(copies[:, k], erase(row, cropped))
    assert (copies[:, 1] != copies[:, 2]).any()


def test_copies_need_only_the_settings_that_are_given():
    splits = make_splits(2, {"cutout": 3})
    assert splits.shared is None
    assert make_splits(1, {"cutout": 3}) is None


def test_copies_that_would_be_equal_are_refused():
    with pytest.raises(UserError, match="3 copies of each example would be equal") as e:
        make_splits(3, {"pad_crop": 4, "flip": "random"})
    assert "\n" not in str(e.value)


def noise(keys, images, parity=None):
    del parity
    return images + jax.vmap(lambda k: jax.random.normal(k, images.shape[1:]))(keys)


def test_step_descends_the_loss_of_all_copies():
    batch = random_batch(n=8)
    splits = make_splits(3, SETTINGS)._replace(shared=None, own=noise)
    model, optimizer = LinearClassifier(), optax.sgd(0.1)
    state = create_state(model, optimizer, 0, (2, 2, 1))
    step = make_train_step(model, optimizer, augment=splits, jsd_weight=5.0)
    new, metrics = jax.jit(step)(state, batch)
    keys = example_keys(state.seed, state.step, jnp.asarray(batch["index"]))
    images = splits(keys, jnp.asarray(batch["image"]))

    def loss(params):
        logits = [model.apply({"params": params}, images[:, k], train=True) for k in range(3)]
        loss_fn = add_jensen_shannon(cross_entropy, 5.0)
        return loss_fn(jnp.stack(logits, 1), batch["label"]).mean(), logits[0]

    (expected, clean), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    accuracy = np.mean(np.argmax(clean, -1) == batch["label"])
    np.testing.assert_allclose(metrics["accuracy"], accuracy, rtol=1e-6)
    jax.tree.map(
        lambda a, b, g: np.testing.assert_allclose(a, b - 0.1 * g, rtol=1e-4, atol=1e-6),
        new.params, state.params, grads,
    )  # fmt: skip


def test_losses_do_not_depend_on_devices_or_micro_batches():
    batch = random_batch(n=16)
    losses = []
    for parallel, devices, count in (
        ("pmap", 1, 1),
        ("pmap", 4, 1),
        ("mesh", 4, 1),
        ("mesh", 4, 2),
    ):
        engine = make_engine(parallel, jax.devices()[:devices])
        splits = make_splits(3, SETTINGS)._replace(shared=None, own=noise)
        optimizer, model = optax.sgd(0.1), LinearClassifier()
        step = make_train_step(
            model, optimizer, augment=splits, axis_name=engine.axis_name, grad_accum_steps=count
        )
        run = engine.compile_train(step)
        state = engine.put_state(create_state(model, optimizer, 0, (2, 2, 1)))
        values = []
        for _ in range(3):
            state, metrics = run(state, engine.shard_batch(batch))
            values.append(float(np.mean(engine.to_host(metrics["loss"]))))
        losses.append(values)
    np.testing.assert_allclose(losses, [losses[0]] * 4, rtol=1e-5)


def make_config(**keys):
    config = default_config()
    config.epochs, config.batch_size = 1, 16
    config.data.aug_splits, config.data.auto_augment = 3, "augmix-m3-w3"
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in keys.items()})
    return config


@pytest.mark.slow
def test_runs_with_dropout_compute_all_copies():
    """Each copy has its own augmentation and mask; batch norm is over all copies."""
    config = make_config(dataset="fake:8x8x3:4:32", model="cifar_resnet8", spec__dropout=0.5)
    splits = build_splits(config)
    run = build(config, devices=jax.devices()[:1])
    engine, dataset = run.engine, run.dataset.train
    batch = {"image": dataset.images[:16], "label": dataset.labels[:16]}
    batch["index"] = np.arange(16, dtype=np.int32)
    first = run.init()
    state = engine.put_state(first)
    _, metrics = engine.compile_train(run.train_step)(state, engine.shard_batch(batch))

    keys = example_keys(first.seed, first.step, jnp.asarray(batch["index"]))
    images = build_normalizer(dataset)(splits(keys, jnp.asarray(batch["image"])))
    variables = {"params": first.params, "batch_stats": first.batch_stats}
    apply = jax.jit(partial(run.model.apply, train=True, mutable="batch_stats"))

    def loss(masks):
        flat = images.reshape(-1, 8, 8, 3), jnp.stack(masks, axis=1).reshape(-1)
        logits, _ = apply(variables, flat[0], dropout_keys=flat[1])
        losses = add_jensen_shannon(cross_entropy, 12.0)(logits.reshape(16, 3, -1), batch["label"])
        return float(losses.mean())

    expected = loss(copy_keys(keys, 3))
    np.testing.assert_allclose(engine.to_host(metrics["loss"]), expected, rtol=1e-4)
    assert abs(loss([keys] * 3) - expected) > 1e-3 * expected  # the same masks for all copies


def test_networks_with_members_are_refused():
    config = make_config(dataset="fake:32x32x3:4:32", spec__ensemble="batch")
    with pytest.raises(UserError, match="aug_splits is 3, but the network is an ensemble"):
        build(config)


def test_ghost_batch_norm_counts_all_copies():
    config = make_config(batch_norm="ghost", ghost_batch_size=20)
    with pytest.raises(UserError, match=r"divisor of 48, .* \(48 images? in a batch"):
        build(config, dataset=load_dataset("digits"), devices=jax.devices()[:1])
