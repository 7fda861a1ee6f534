"""Inputs of the training step: augmentation, mixing, and keys that depend on the example."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.modules import LinearClassifier, random_batch, softmax

from resflax.data import make_augment
from resflax.train import create_state, make_engine, make_train_step
from resflax.train.step_inputs import example_keys

SHAPE = (2, 2, 1)


@pytest.mark.slow
def test_example_keys_depend_on_seed_step_and_example_only():
    def bits(seed, step, index):
        keys = example_keys(jnp.uint32(seed), jnp.int32(step), jnp.asarray(index, jnp.int32))
        return np.asarray(jax.random.key_data(keys))

    batch = bits(3, 5, [7, 8, 9, 10])
    np.testing.assert_array_equal(batch[2:], bits(3, 5, [9, 10]))
    for other in (bits(4, 5, [7]), bits(3, 6, [7]), bits(3, 5, [8])):
        assert (other != batch[0]).any()


@pytest.mark.slow
def test_step_augments_before_it_normalizes():
    calls = []

    def augment(keys, images):
        calls.append(("augment", images.dtype, keys.shape))
        return make_augment(pad_crop=1)(keys, images)

    def normalize(images):
        calls.append(("normalize", images.dtype, images.shape))
        return images.astype(jnp.float32)

    optimizer = optax.sgd(0.1)
    batch = {**random_batch(), "image": np.zeros((6, 2, 2, 1), np.uint8)}
    step = make_train_step(LinearClassifier(), optimizer, augment=augment, normalize=normalize)
    step(create_state(LinearClassifier(), optimizer, 0, SHAPE), batch)
    assert calls == [("augment", jnp.uint8, (6,)), ("normalize", jnp.uint8, (6, 2, 2, 1))]


@pytest.mark.slow
def test_mix_gets_normalized_images_and_one_hot_targets():
    """Mixes each example with the next one, half and half; labels are smoothed afterwards."""

    def augment(keys, images):
        return images + 1

    def mix(keys, images, targets):
        assert keys.shape == (6,)
        np.testing.assert_array_equal(targets, np.eye(3)[batch["label"]])
        np.testing.assert_allclose(images, 2 * (batch["image"] + 1), rtol=1e-6)
        return (images + jnp.roll(images, 1, 0)) / 2, (targets + jnp.roll(targets, 1, 0)) / 2

    batch, optimizer = random_batch(), optax.sgd(0.5)
    state = create_state(LinearClassifier(), optimizer, 0, SHAPE)
    _, metrics = make_train_step(
        LinearClassifier(),
        optimizer,
        augment=augment,
        normalize=lambda images: 2 * images,
        mix=mix,
        num_classes=3,
        label_smoothing=0.1,
    )(state, batch)
    x, hard = 2 * (batch["image"].reshape(6, 4) + 1.0), np.eye(3)[batch["label"]]
    p = softmax((x + np.roll(x, 1, 0)) / 2 @ np.asarray(state.params["head"]["kernel"]))
    smooth = hard * 0.9 + 0.1 / 3  # as timm: smoothed, then mixed
    target = (smooth + np.roll(smooth, 1, 0)) / 2
    np.testing.assert_allclose(metrics["loss"], -(target * np.log(p)).sum(-1).mean(), rtol=1e-5)
    accuracy = (p.argmax(-1) == batch["label"]).mean()
    np.testing.assert_allclose(metrics["accuracy"], accuracy, rtol=1e-6)


def test_mix_requires_the_number_of_classes():
    def mix(keys, images, targets):
        return images, targets

    with pytest.raises(ValueError, match="expected num_classes"):
        make_train_step(LinearClassifier(), optax.sgd(0.1), mix=mix)


class RandomLogits(nn.Module):
    """Returns normal logits, a function of the key of each example."""

    axis_name: str | None = None
    needs_rng = True

    @nn.compact
    def __call__(self, x, *, train, dropout_keys=None):
        w = self.param("w", nn.initializers.zeros, (3,))
        if dropout_keys is None:
            return jnp.zeros((len(x), 3)) + w
        return jax.vmap(lambda key: jax.random.normal(key, (3,), jnp.float32))(dropout_keys) + w


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
def test_dropout_keys_belong_to_examples(count):
    """A key depends on seed, step and example, not on the device or the micro-batch."""
    batch, optimizer = random_batch(24), optax.sgd(0.1)
    variables = {"params": {"w": jnp.zeros(3)}}
    state = create_state(RandomLogits(), optimizer, 5, SHAPE, variables)
    keys = example_keys(jnp.uint32(5), jnp.int32(0), batch["index"])
    logits = [np.asarray(jax.random.normal(key, (3,), jnp.float32), np.float64) for key in keys]
    p = softmax(np.stack(logits))
    expected = -np.log(p[np.arange(24), batch["label"]]).mean()
    step = make_train_step(RandomLogits(), optimizer, grad_accum_steps=count)
    np.testing.assert_allclose(step(state, batch)[1]["loss"], expected, rtol=1e-5)
    engine = make_engine("pmap")
    step = make_train_step(
        RandomLogits(), optimizer, grad_accum_steps=count, axis_name=engine.axis_name
    )
    _, metrics = engine.compile_train(step)(engine.put_state(state), engine.shard_batch(batch))
    np.testing.assert_allclose(engine.to_host(metrics)["loss"], expected, rtol=1e-5)


def test_alternating_flip_uses_the_epoch_of_the_batch():
    inputs = []

    def normalize(images):
        inputs.append(np.asarray(images))
        return images

    batch, optimizer = random_batch(), optax.sgd(0.1)
    augment = make_augment(flip="alternating")
    step = make_train_step(LinearClassifier(), optimizer, augment=augment, normalize=normalize)
    state = create_state(LinearClassifier(), optimizer, 0, SHAPE)
    for epoch in (0, 1):
        step(state, batch | {"epoch": np.full(6, epoch, np.int32)})
    np.testing.assert_array_equal(inputs[0], inputs[1][:, :, ::-1])
    assert (inputs[0] != inputs[1]).any(axis=(1, 2, 3)).all()
