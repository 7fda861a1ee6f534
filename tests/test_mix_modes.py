"""Mixup and CutMix by pair, element and batch: timm's images, targets and loss; probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm.data.mixup as timm_mixup
import torch
from timm.loss import SoftTargetCrossEntropy

from resflax import UserError
from resflax.data import make_mix
from resflax.data.augment.box import sample_centered_box
from resflax.train.losses import cross_entropy
from resflax.train.state import TrainState
from resflax.train.step_inputs import make_prepare_batch

N, CLASSES, SHAPE = 16, 5, (6, 8, 3)
ORDER = np.r_[np.arange(0, N, 2), np.arange(1, N, 2)[::-1]]  # timm mixes i with N - 1 - i


def make_batch():
    rng = np.random.default_rng(0)
    images = rng.standard_normal((N, *SHAPE)).astype(np.float32)
    return images, rng.integers(0, CLASSES, N)


def split_keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def keys_of(mode):
    """One key per example; with "batch", the same for all."""
    keys = split_keys(N, 3)
    return jnp.broadcast_to(keys[0], (N,)) if mode == "batch" else keys


def timm_result(mix, keys, images, labels, monkeypatch, smoothing):
    """timm's images and targets with the draws of `mix`, in our order."""
    rows = {"pair": ORDER[: N // 2], "elem": ORDER, "batch": ORDER[:1]}[mix.mode]
    drawn = jax.vmap(mix.draw)(keys[rows])
    use_cutmix, weights = np.asarray(drawn.method) == 1, np.asarray(drawn.weight)
    boxes = []
    for key, weight in zip(drawn.key, drawn.weight, strict=True):
        side = jnp.sqrt(1 - weight)
        height, width = ((size * side).astype(jnp.int32) for size in SHAPE[:2])
        box = sample_centered_box(key, SHAPE[:2], height, width)
        ends = [
            np.clip([int(first), int(first + length)], 0, size)
            for first, length, size in zip(box[:2], box[2:], SHAPE[:2], strict=True)
        ]
        boxes.append((*ends[0], *ends[1]))
    chosen = iter([box for box, is_cut in zip(boxes, use_cutmix, strict=True) if is_cut])
    monkeypatch.setattr(timm_mixup, "rand_bbox", lambda *args, **kwargs: next(chosen))
    theirs = timm_mixup.Mixup(
        mixup_alpha=0.8, cutmix_alpha=1.0, mode=mix.mode, label_smoothing=smoothing,
        num_classes=CLASSES,
    )  # fmt: skip
    each = (weights.astype(np.float32).copy(), use_cutmix)
    monkeypatch.setattr(theirs, "_params_per_elem", lambda count: each)
    monkeypatch.setattr(theirs, "_params_per_batch", lambda: (float(weights[0]), use_cutmix[0]))
    x = torch.from_numpy(images[ORDER]).movedim(-1, 1).contiguous()
    x, target = theirs(x, torch.from_numpy(labels[ORDER]))
    back = np.argsort(ORDER)
    return x.movedim(1, -1).numpy()[back], target.numpy()[back]


@pytest.mark.parametrize("mode", ["pair", "elem", "batch"])
def test_mixed_images_targets_and_loss_are_those_of_timm(mode, monkeypatch):
    images, labels = make_batch()
    mix, keys = make_mix(mixup=0.8, cutmix=1.0, mode=mode), keys_of(mode)
    expected_images, expected = timm_result(mix, keys, images, labels, monkeypatch, 0.1)
    one_hot = np.eye(CLASSES, dtype=np.float32)[labels]
    mixed, targets = jax.jit(mix)(keys, jnp.asarray(images), jnp.asarray(one_hot))
    np.testing.assert_allclose(mixed, expected_images, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(0.9 * targets + 0.1 / CLASSES, expected, rtol=1e-5, atol=1e-6)
    logits = np.random.default_rng(1).standard_normal((N, CLASSES)).astype(np.float32)
    loss = cross_entropy(jnp.asarray(logits), targets, label_smoothing=0.1).mean()
    theirs = SoftTargetCrossEntropy()(torch.from_numpy(logits), torch.from_numpy(expected))
    np.testing.assert_allclose(loss, theirs, rtol=1e-5)


@pytest.mark.parametrize(("probability", "switch"), [(1.0, 0.5), (0.3, 0.5), (0.6, 0.2)])
def test_methods_are_drawn_by_their_probabilities(probability, switch):
    n = 4000
    mix = make_mix(mixup=0.8, cutmix=1.0, probability=probability, switch_probability=switch)
    drawn = jax.jit(jax.vmap(mix.draw))(split_keys(n))
    is_mixed, is_cutmix = np.asarray(drawn.weight) < 1, np.asarray(drawn.method) == 1
    for drawn, expected in [(is_mixed, probability), (is_cutmix, switch)]:
        assert abs(drawn.mean() - expected) < 4.5 * np.sqrt(0.25 / n)
    share = (is_mixed & is_cutmix).mean()
    assert abs(share - probability * switch) < 4.5 * np.sqrt(0.25 / n)  # independent


def test_one_method_is_always_chosen():
    for alphas in ({"mixup": 0.3}, {"cutmix": 0.3}):
        drawn = jax.vmap(make_mix(**alphas, switch_probability=1.0).draw)(split_keys(50))
        assert not np.asarray(drawn.method).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "half"}, "unknown mode 'half': expected one of pair, elem, batch"),
        ({"probability": 1.5}, "probability is 1.5: expected a probability"),
        ({"switch_probability": -1}, "switch_probability is -1: expected a probability"),
    ],
)
def test_invalid_settings_raise(settings, message):
    with pytest.raises(UserError, match=message):
        make_mix(mixup=0.2, **settings)


def prepare(step, mix, mix_steps=None):
    images, labels = make_batch()
    run = make_prepare_batch(None, lambda x: x, mix, CLASSES, False, mix_steps)
    state = TrainState(jnp.int32(step), jnp.uint32(5), {}, {}, {})
    index = jnp.arange(N, dtype=jnp.int32) * 3
    batch = {"image": jnp.asarray(images), "label": jnp.asarray(labels), "index": index}
    return run(state, batch)


def test_nothing_is_mixed_from_the_last_step_of_mixing_on():
    images, labels = make_batch()
    mix = make_mix(mixup=1.0)
    for step, is_on in [(0, True), (6, True), (7, False), (8, False)]:
        inputs = prepare(step, mix, mix_steps=7)
        assert (np.asarray(inputs.image) != images).any() == is_on
        if is_on:
            np.testing.assert_array_equal(inputs.image, prepare(step, mix).image)
        else:
            np.testing.assert_array_equal(inputs.target, np.eye(CLASSES)[labels])


def test_batch_mode_has_one_weight_that_differs_between_steps():
    mix, (images, _) = make_mix(mixup=1.0, mode="batch"), make_batch()
    weights = []
    for step in range(3):
        x, y = np.asarray(prepare(step, mix).image), images[np.arange(N) ^ 1]
        each = ((x - y) / (images - y)).reshape(N, -1)
        np.testing.assert_allclose(each, each[0, 0], rtol=1e-2, atol=1e-3)
        weights.append(each[0, 0])
    assert len(set(weights)) == 3
