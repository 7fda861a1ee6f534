"""Losses: closed forms in float64, and the numbers of timm and torchvision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resflax import UserError
from resflax.data.augment.mix import make_mix
from resflax.train import check_config, default_config
from resflax.train.choice import Choice
from resflax.train.losses import LOSSES, binary_cross_entropy, build_loss, cross_entropy, focal_loss

RNG = np.random.default_rng(0)
LOGITS = (3 * RNG.standard_normal((8, 5))).astype(np.float32)
LABELS = RNG.integers(0, 5, 8).astype(np.int32)
SOFT = RNG.dirichlet(np.ones(5), 8).astype(np.float32)


def config_of(**keys):
    config = default_config()
    config.update_from_flattened_dict(keys)
    check_config(config)
    return config


def torch_mean(loss, *arrays):
    torch = pytest.importorskip("torch")
    labels = [torch.from_numpy(np.asarray(x)) for x in arrays]
    return float(loss(*[x.long() if x.dtype == torch.int32 else x for x in labels]))


def mean(loss, targets, **options):
    return jnp.mean(jax.jit(lambda x: loss(x, targets, **options))(LOGITS))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("threshold", [None, 0.2])
def test_binary_cross_entropy_equals_timms(smoothing, threshold):
    timm = pytest.importorskip("timm.loss")
    options = {"target_threshold": threshold}
    for total in (False, True):
        loss = timm.BinaryCrossEntropy(smoothing, sum_classes=total, **options)
        options_ = {**options, "sum_classes": total}
        actual = mean(binary_cross_entropy, LABELS, label_smoothing=smoothing, **options_)
        np.testing.assert_allclose(actual, torch_mean(loss, LOGITS, LABELS), rtol=1e-5)
        actual = mean(binary_cross_entropy, SOFT, **options_)
        np.testing.assert_allclose(actual, torch_mean(loss, LOGITS, SOFT), rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_timms(smoothing):
    timm = pytest.importorskip("timm.loss")
    expected = torch_mean(timm.LabelSmoothingCrossEntropy(smoothing), LOGITS, LABELS)
    actual = mean(cross_entropy, LABELS, label_smoothing=smoothing)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    expected = torch_mean(timm.SoftTargetCrossEntropy(), LOGITS, SOFT)
    np.testing.assert_allclose(mean(cross_entropy, SOFT), expected, rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.25, -1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_equals_torchvisions(alpha, gamma):
    ops = pytest.importorskip("torchvision.ops")
    for targets in (np.eye(5, dtype=np.float32)[LABELS], SOFT):
        expected = torch_mean(
            lambda x, t: ops.sigmoid_focal_loss(x, t, alpha, gamma, "mean"), LOGITS, targets
        )
        actual = mean(focal_loss, targets, alpha=alpha, gamma=gamma)
        np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_focal_loss_has_finite_gradients_for_certain_logits():
    """A power below 1 has an infinite derivative at 0."""
    logits = jnp.array([[200.0, -200.0], [-200.0, 200.0]])
    grads = jax.grad(lambda x: focal_loss(x, jnp.array([0, 0]), gamma=0.5).sum())(logits)
    assert np.isfinite(grads).all()
    np.testing.assert_allclose(grads[0], 0, atol=1e-6)
    np.testing.assert_allclose(grads[1], [-0.25 / 2, 0.75 / 2], rtol=1e-5)  # -a and 1 - a, halved


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_losses_of_mixed_targets_equal_timms(loss, smoothing):
    """Mixup and CutMix of one batch: timm smooths labels before mixing, resflax after it."""
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm.loss")
    keys = jax.random.split(jax.random.key(1), 8)
    images, eye = jnp.ones((8, 16, 16, 1)), jnp.eye(5)[LABELS]
    _, targets = make_mix(mixup=0.2, cutmix=1.0)(keys, images, eye)
    weights = np.asarray(make_mix(mixup=0.2, cutmix=1.0)(keys, images, jnp.eye(8))[1])
    assert len({*weights.diagonal().round(4)}) > 2
    off = smoothing / 5
    smoothed = np.where(np.asarray(eye) > 0, 1 - smoothing + off, off)
    mixed = torch.from_numpy((weights @ smoothed).astype(np.float32))
    functions = {
        "cross_entropy": timm.SoftTargetCrossEntropy(),
        "bce": timm.BinaryCrossEntropy(smoothing, target_threshold=0.2),
    }
    keys = {"bce_target_threshold": 0.2} if loss == "bce" else {}
    actual = mean(build_loss(config_of(loss=loss, **keys)), targets, label_smoothing=smoothing)
    expected = float(functions[loss](torch.from_numpy(LOGITS), mixed))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0)])
def test_bce_of_timms_mixed_batches_equals_timms(mixup, cutmix, smoothing):
    """Without a threshold, which would hide the smoothing; the batch is mixed by timm."""
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    labels, images = torch.from_numpy(LABELS).long(), torch.ones(8, 1, 16, 16)
    np.random.seed(0)  # timm's mixup draws from NumPy's global generator
    mixed, plain = (
        timm.data.Mixup(mixup, cutmix, label_smoothing=s, num_classes=5) for s in (smoothing, 0.0)
    )
    state = np.random.get_state()
    targets = mixed(images.clone(), labels)[1]
    np.random.set_state(state)
    sharp = plain(images.clone(), labels)[1].numpy().astype(np.float32)
    assert ((sharp > 0) & (sharp < 1)).any()
    expected = float(timm.loss.BinaryCrossEntropy(smoothing=0)(torch.from_numpy(LOGITS), targets))
    actual = mean(build_loss(config_of(loss="bce")), sharp, label_smoothing=smoothing)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_members_are_their_mean(name):
    members = np.stack([LOGITS, -LOGITS, 2 * LOGITS])
    expected = sum(LOSSES[name](x, LABELS, 0.1) for x in members) / 3
    np.testing.assert_allclose(LOSSES[name](members, LABELS, 0.1), expected, rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_take_the_label_smoothing_of_each_member(name):
    for smoothing in (0.0, 0.1):
        choice = Choice(jnp.float32(smoothing), (0.0, 0.1))
        losses = LOSSES[name](LOGITS, LABELS, choice)
        np.testing.assert_array_equal(losses, LOSSES[name](LOGITS, LABELS, smoothing))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_invalid_labels_are_nan(name):
    losses = LOSSES[name](LOGITS, np.where(np.arange(8) == 3, 5, LABELS))
    assert np.isnan(losses[3])
    assert np.isfinite(np.delete(losses, 3)).all()
    with pytest.raises(UserError, match="targets have shape"):
        LOSSES[name](LOGITS, SOFT[:, :4])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"loss": "mse"}, "unknown loss 'mse'"),
        ({"loss": "bce", "bce_target_threshold": 1.0}, "bce_target_threshold is 1.0: expected 0"),
        ({"loss": "focal", "focal_alpha": 2.0}, "focal_alpha is 2.0: expected 0 to 1, or -1"),
        ({"loss": "focal", "focal_gamma": -1.0}, "focal_gamma is -1.0: expected 0 or more"),
        ({"focal_gamma": 1.0}, "config.loss='cross_entropy' does not take it: .* use focal"),
    ],
)
def test_losses_of_a_config_are_checked(keys, message):
    with pytest.raises(UserError, match=message):
        config_of(**keys)
