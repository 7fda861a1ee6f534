"""Augmentation policies against timm and torchvision: arguments, operations and distributions."""

import random
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm.data.auto_augment as timm_aa
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, autoaugment
from torchvision.transforms import functional as tv

from resflax import UserError
from resflax.data.augment import auto_augment, color
from resflax.data.augment.augmix import Mixture, blend_chains, sample_mixture
from resflax.data.augment.auto import parse_augmix, parse_rand
from resflax.data.augment.blur import gaussian_blur
from resflax.data.augment.chance import random_blur, random_grayscale, random_solarize
from resflax.data.augment.levels import (
    AUGMIX,
    AUTOAUGMENT,
    CHOICES,
    THREE,
    TIMM,
    TIMM_INCREASING,
    TRIVIAL,
    Level,
    arguments,
)
from resflax.data.augment.ops import COLOR_OPS, apply_op
from resflax.data.augment.policies import POLICIES, Step, apply_sub_policy
from resflax.data.augment.rand import TRIVIAL_AUGMENT, RandPolicy, apply_policy, sample_arguments

SHAPE = (24, 32, 3)  # an image of fewer than 256 pixels is not equalized
NAMES = {
    "AutoContrast": "autocontrast", "Equalize": "equalize", "Invert": "invert", "Rotate": "rotate",
    "Posterize": "posterize", "Solarize": "solarize", "SolarizeAdd": "solarize_add",
    "Color": "color", "Desaturate": "color", "Contrast": "contrast", "Brightness": "brightness",
    "Sharpness": "sharpness", "ShearX": "shear_x", "ShearY": "shear_y", "GaussianBlur": "blur",
    "TranslateX": "translate_x", "TranslateY": "translate_y", "Identity": "identity",
}  # fmt: skip


def make_image(seed=0):
    rng = np.random.default_rng(seed)
    ramp = np.add.outer(4 * np.arange(SHAPE[0]), 3 * np.arange(SHAPE[1]))[..., None] + 20
    noise = rng.integers(20, 200, SHAPE)
    return np.where(np.arange(3) == 0, ramp, noise).astype(np.uint8)


def split_keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def our_name(name):
    """The operation of one of timm's or torchvision's."""
    return NAMES[name.removesuffix("Increasing").removesuffix("Rel")]


def timm_argument(name, magnitude, sign, monkeypatch):
    """The argument in the units of this package; None for an operation without one."""
    if timm_aa.LEVEL_TO_ARG[name] is None:
        return None
    monkeypatch.setattr(random, "random", lambda: 0.0 if sign > 0 else 1.0)
    (value,) = timm_aa.LEVEL_TO_ARG[name](magnitude, {})
    if name == "Rotate":
        return np.radians(value)
    if name == "Desaturate":  # whose function subtracts it from 1
        return 1 - value
    side = {"TranslateXRel": SHAPE[1], "TranslateYRel": SHAPE[0]}.get(name, 1)
    return value * side


TIMM_TABLES = {
    "increasing": (timm_aa._RAND_INCREASING_TRANSFORMS, TIMM_INCREASING),
    "not increasing": (timm_aa._RAND_TRANSFORMS, TIMM),
    "three": (timm_aa._RAND_3A, THREE),
}


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("table", TIMM_TABLES)
def test_arguments_at_each_magnitude_are_those_of_timm(table, sign, monkeypatch):
    theirs, ours = TIMM_TABLES[table]
    rows = {row.op: k for k, row in enumerate(ours)}
    assert set(rows) == {our_name(name) for name in theirs}
    assert len(ours) == len(theirs)
    traced = jax.jit(lambda m: arguments(ours, m, 10, sign, SHAPE))
    for magnitude in [*range(11), 6.51, 12]:
        known = arguments(ours, magnitude, 10, sign, SHAPE)
        for name in theirs:
            expected = timm_argument(name, magnitude, sign, monkeypatch)
            if expected is None:
                continue
            k = rows[our_name(name)]
            np.testing.assert_allclose(known[k], expected, rtol=1e-6, err_msg=name)
            if not isinstance(expected, int) or magnitude == 6.51:  # no edge of two integers
                np.testing.assert_allclose(traced(magnitude)[k], expected, rtol=1e-5, err_msg=name)


def torchvision_argument(name, value):
    value = float(value)
    if name == "Rotate":
        return np.radians(value)
    if name in ("Brightness", "Color", "Contrast", "Sharpness"):
        return 1 + value
    if name == "Solarize":  # integers are at least a number if they are at least its ceiling
        return np.ceil(value)
    # torchvision's 16 pixels are 15.999999, and so 15, for a rounding error of float32.
    return float(int(round(value, 4))) if name.startswith("Translate") else value


TORCHVISION_TABLES = {
    "autoaugment": (autoaugment.AutoAugment()._augmentation_space(10, SHAPE[:2]), AUTOAUGMENT),
    "trivial": (autoaugment.TrivialAugmentWide()._augmentation_space(31), TRIVIAL),
}


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("table", TORCHVISION_TABLES)
def test_arguments_at_each_magnitude_are_those_of_torchvision(table, sign):
    theirs, ours = TORCHVISION_TABLES[table]
    names = [row.op for row in ours]
    assert sorted(names) == sorted(map(our_name, theirs))
    count = len(theirs["Rotate"][0])
    result = np.asarray(arguments(ours, np.arange(count), count - 1, sign, SHAPE))
    for name, (values, is_signed) in theirs.items():
        row = names.index(our_name(name))
        assert ours[row].signed == is_signed
        if values.ndim:
            signed = values * sign if is_signed else values
            expected = [torchvision_argument(name, value) for value in signed]
            np.testing.assert_allclose(result[:, row], expected, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_operations_of_trivial_augment_are_those_of_torchvision(sign):
    image = make_image()
    theirs, ours = TORCHVISION_TABLES["trivial"]
    names = [row.op for row in ours]
    for magnitude in (4, 17, 30):
        levels = arguments(ours, magnitude, 30, sign, SHAPE)
        for name, (values, is_signed) in theirs.items():
            op = names.index(our_name(name))
            value = float(values[magnitude]) if values.ndim else 0.0
            direction = -1 if our_name(name).startswith("translate") else 1  # torchvision's
            expected = autoaugment._apply_op(
                Image.fromarray(image), name, value * (sign * direction if is_signed else 1),
                InterpolationMode.NEAREST, [128, 128, 128],
            )  # fmt: skip
            result = APPLY(image, op, levels[op])
            error = np.abs(np.asarray(result, np.int32) - np.asarray(expected, np.int32)).max(-1)
            # A few pixels of a rotation or shear are halfway between two source pixels.
            share = 0.97 if our_name(name).startswith(("rotate", "shear")) else 1
            assert (error <= 1).mean() >= share, (name, magnitude)


APPLY = jax.jit(partial(apply_op, names=[row.op for row in TRIVIAL]))


def test_invert_and_solarize_add_are_those_of_timm():
    image = make_image()
    for name, argument in [("invert", 0), ("solarize_add", 0), ("solarize_add", 110)]:
        result = COLOR_OPS[name](jnp.asarray(image), jnp.float32(argument))
        function = {"invert": timm_aa.invert, "solarize_add": timm_aa.solarize_add}[name]
        expected = function(Image.fromarray(image), add=argument)
        np.testing.assert_array_equal(result, np.asarray(expected))


def test_posterize_to_no_bits_is_black():
    assert not np.asarray(color.posterize(jnp.asarray(make_image()), jnp.float32(0))).any()


@pytest.mark.parametrize("std", [0.1, 0.7, 2.0])
def test_gaussian_blur_is_that_of_torchvision(std):
    image = make_image()
    expected = tv.gaussian_blur(torch.from_numpy(image).movedim(-1, 0), 23, std).movedim(0, -1)
    result = jax.jit(gaussian_blur)(jnp.asarray(image), jnp.float32(std))
    assert np.abs(np.asarray(result, np.int32) - expected.numpy()).max() <= 1


def test_sub_policies_are_those_of_torchvision():
    for name, policy in zip(POLICIES, autoaugment.AutoAugmentPolicy, strict=True):
        theirs = autoaugment.AutoAugment(policy).policies
        expected = [[(our_name(n), p, magnitude or 0) for n, p, magnitude in row] for row in theirs]
        assert [[tuple(step) for step in row] for row in POLICIES[name]] == expected


@pytest.mark.parametrize(
    "text",
    ["rand", "rand-m7-mstd0.5-inc1", "rand-m9-n3-p1.0", "rand-m15-mmax20-mstd101", "rand-m12",
     "rand-tweights-inc1", "rand-t3a", "rand-t3aw-m5-n4"],
)  # fmt: skip
def test_string_means_what_it_means_in_timm(text):
    policy, theirs = parse_rand(text), timm_aa.rand_augment_transform(text)
    names = [our_name(op.name) for op in theirs.ops]
    assert sorted(row.op for row in policy.levels) == sorted(names)
    first = theirs.ops[0]
    assert policy.layers == theirs.num_layers
    assert policy.probability == first.prob
    assert policy.std == first.magnitude_std
    assert policy.maximum == (first.magnitude_max or 10)
    assert min(policy.magnitudes[0], policy.maximum) == min(first.magnitude, policy.maximum)
    increasing = any(op.name.endswith("Increasing") for op in theirs.ops)
    assert (Level("posterize", 0, 4, rounding="trunc", high=8) in policy.levels) == (
        not increasing and len(theirs.ops) == 15
    )
    assert bool(policy.weights) == (theirs.choice_weights is not None)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("randaugment", "expected a policy such as rand-m9-mstd0.5-inc1, augmix"),
        ("rand-x3", "where 'x3' is not valid: expected sections such as m10, n2"),
        ("rand-m9-n0", "where 'n0' is not valid"),
        ("rand-n1.5", "where 'n1.5' is not valid"),
        ("rand-mstd", "where 'mstd' is not valid"),
        ("rand-p1.5", "where 'p1.5' is not valid"),
        ("augmix-t3a", "where 't3a' is not valid: expected sections such as m3, w3, d0"),
    ],
)
def test_unknown_policy_is_one_line(name, part):
    with pytest.raises(UserError) as e:
        auto_augment(name)
    assert part in str(e.value)
    assert "\n" not in str(e.value)


def test_magnitude_noise_is_gaussian_within_its_limits():
    """The argument of this table is the magnitude."""
    n, table = 4000, (Level("brightness", 0, 10),)
    policy = RandPolicy(table, magnitudes=(9.0,), std=2.0, maximum=10.0)
    run = partial(sample_arguments, policy=policy, sign=jnp.float32(1), shape=SHAPE)
    drawn = np.sort(np.asarray(jax.jit(jax.vmap(run))(split_keys(n)))[:, 0])
    assert drawn.max() == 10
    above = 0.5 * float(torch.special.erfc(torch.tensor(0.5 / np.sqrt(2))))  # half a deviation
    assert abs((drawn == 10).mean() - above) < 4 * np.sqrt(above * (1 - above) / n)
    inside = drawn[drawn < 10]
    cdf = torch.special.ndtr(torch.from_numpy((inside - 9.0) / 2)).numpy()
    assert np.abs(cdf - (np.arange(len(inside)) + 0.5) / n).max() < 2.2 / np.sqrt(n)


def test_infinite_noise_draws_uniform_magnitudes():
    n = 4000
    policy = parse_rand("rand-m8-mstd101")._replace(levels=(Level("brightness", 0, 10),))
    run = partial(sample_arguments, policy=policy, sign=jnp.float32(1), shape=SHAPE)
    drawn = np.sort(np.asarray(jax.jit(jax.vmap(run))(split_keys(n)))[:, 0])
    assert np.abs(drawn / 8 - (np.arange(n) + 0.5) / n).max() < 2.2 / np.sqrt(n)


def test_trivial_augment_draws_each_magnitude():
    """The argument of this table is the magnitude."""
    n, policy = 6200, TRIVIAL_AUGMENT._replace(levels=(Level("brightness", 0, 30),))
    run = partial(sample_arguments, policy=policy, sign=jnp.float32(1), shape=SHAPE)
    drawn = np.asarray(jax.jit(jax.vmap(run))(split_keys(n)))[:, 0]
    values, counts = np.unique(drawn, return_counts=True)
    np.testing.assert_allclose(values, np.arange(31), atol=1e-5)
    assert np.abs(counts - n / 31).max() < 4.5 * np.sqrt(n / 31)


# Operations that add 1, 2, 4 and 8 to a black image, so that the sum says which were applied.
ADDERS = tuple(Level("solarize_add", 2**k, 2**k) for k in range(4))
BLACK = jnp.zeros((1, 1, 1), jnp.uint8)


def sums(policy, n):
    run = jax.jit(jax.vmap(lambda key: apply_policy(key, BLACK, policy=policy)[0, 0, 0]))
    return np.asarray(run(split_keys(n)))


@pytest.mark.slow
def test_weighted_operations_are_drawn_without_replacement():
    n, weights = 6000, np.array([4.0, 3.0, 2.0, 1.0])
    drawn = sums(RandPolicy(ADDERS, weights=tuple(weights)), n)
    p = weights / weights.sum()
    for i in range(4):
        for j in range(i):
            expected = p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j])
            share = (drawn == 2**i + 2**j).mean()
            assert abs(share - expected) < 4.5 * np.sqrt(expected * (1 - expected) / n)


def test_operations_are_left_out_by_their_probability():
    n = 4000
    drawn = sums(RandPolicy(ADDERS[:1], layers=3, probability=0.3), n)
    for count in range(4):
        expected = [0.343, 0.441, 0.189, 0.027][count]  # binomial
        share = (drawn == count).mean()
        assert abs(share - expected) < 4.5 * np.sqrt(expected * (1 - expected) / n)


@pytest.mark.slow
def test_sub_policy_is_drawn_evenly_and_its_steps_by_probability():
    """Inverted black is white, and its highest four bits are 240."""
    n = 4000
    policy = (
        (Step("invert", 0.3, 0), Step("posterize", 1.0, 9)),
        (Step("solarize", 1.0, 9), Step("invert", 0.0, 0)),
    )
    run = jax.jit(jax.vmap(lambda key: apply_sub_policy(key, BLACK, policy=policy)[0, 0, 0]))
    drawn = np.asarray(run(split_keys(n)))
    for value, expected in [(240, 0.15), (0, 0.35), (255, 0.5)]:
        assert abs((drawn == value).mean() - expected) < 4.5 * np.sqrt(expected / n)


@pytest.mark.slow
def test_three_augment_is_gray_or_solarized_or_blurred():
    image, n = make_image(), 900
    result = np.asarray(jax.jit(jax.vmap(lambda k: auto_augment("3a")(k, image)))(split_keys(n)))
    gray = tv.rgb_to_grayscale(Image.fromarray(image), 3)
    is_gray = (result == np.asarray(gray)).all((1, 2, 3))
    is_solarized = (result == np.asarray(tv.solarize(Image.fromarray(image), 128))).all((1, 2, 3))
    assert abs(is_gray.mean() - 1 / 3) < 0.07
    assert abs(is_solarized.mean() - 1 / 3) < 0.07
    assert not (is_gray & is_solarized).any()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rand-m7-mstd0.5-inc1", "trivial", "autoaugment", "augmix"])
def test_policies_change_images_and_keep_their_shape(name):
    images = jnp.asarray(np.stack([make_image(seed) for seed in range(32)]))
    result = jax.jit(jax.vmap(auto_augment(name)))(split_keys(32), images)
    assert result.dtype == jnp.uint8
    assert result.shape == images.shape
    changed = np.asarray(result != images).any((1, 2, 3)).mean()
    assert changed > 0.5


@pytest.mark.slow
def test_changes_with_a_probability_happen_that_often():
    image, n = jnp.asarray(make_image()), 600
    gray = color.grayscale(image)
    np.testing.assert_array_equal(gray, tv.rgb_to_grayscale(Image.fromarray(make_image()), 3))
    solarized = np.asarray(tv.solarize(Image.fromarray(make_image()), 128))
    runs = {
        "gray": (random_grayscale, np.asarray(gray)),
        "solarize": (random_solarize, solarized),
        "blur": (random_blur, None),
    }
    for name, (run, expected) in runs.items():
        apply = jax.jit(jax.vmap(lambda key, run=run: run(key, image, probability=0.3)))
        result = np.asarray(apply(split_keys(n)))
        changed = (result != np.asarray(image)).any((1, 2, 3))
        if expected is not None:
            assert (result[changed] == expected).all(), name
        assert abs(changed.mean() - 0.3) < 4 * np.sqrt(0.21 / n), name


def test_weights_of_timm_are_those_of_its_tables():
    assert list(CHOICES) == ["weights", "3a", "3aw"]
    for name in ("weights", "3aw"):
        theirs = timm_aa.rand_augment_choices(name)
        ours = [(row.op, weight) for row, weight in CHOICES[name].items()]
        assert sorted(ours) == sorted((our_name(n), weight) for n, weight in theirs.items())


def test_augmix_operations_are_those_of_timm():
    names = sorted(our_name(name) for name in timm_aa._AUGMIX_TRANSFORMS)
    assert sorted(row.op for row in AUGMIX) == names
    timm_rows = {row.op: row for row in TIMM_INCREASING}
    for row in AUGMIX:
        is_shift = row.op.startswith("translate")
        assert row == (timm_rows[row.op]._replace(end=0.3) if is_shift else timm_rows[row.op])


@pytest.mark.parametrize("text", ["augmix", "augmix-m5-w4-d2", "augmix-a0.5-mstd1"])
def test_augmix_string_means_what_it_means_in_timm(text):
    settings, theirs = parse_augmix(text), timm_aa.augment_and_mix_transform(text, {})
    assert settings.width == theirs.width
    assert settings.alpha == theirs.alpha
    assert (settings.chain.layers, settings.is_random_depth) == (
        (3, True) if theirs.depth < 0 else (theirs.depth, False)
    )
    assert settings.chain.magnitudes == (theirs.ops[0].magnitude,)
    assert settings.chain.std == theirs.ops[0].magnitude_std
    assert settings.chain.probability == theirs.ops[0].prob


def test_augmix_blend_is_that_of_timm(monkeypatch):
    """timm rounds twice, down: the chains' blend and that with the image."""
    image, chains = make_image(), [make_image(seed) for seed in (1, 2, 3)]
    weights, share = np.float32([0.2, 0.5, 0.3]), np.float32(0.6)
    results = iter(Image.fromarray(chain) for chain in chains)
    theirs = timm_aa.AugMixAugment([lambda _: next(results)], depth=1)
    monkeypatch.setattr(np.random, "choice", lambda ops, size, replace: np.array(ops[:size]))
    expected = np.asarray(theirs._apply_basic(Image.fromarray(image), weights, share), np.int32)
    mixture = Mixture(jnp.asarray(weights), jnp.asarray(share), jnp.zeros(3, jnp.int32))
    result = blend_chains(jnp.asarray(image), jnp.asarray(np.stack(chains)), mixture)
    assert np.abs(np.asarray(result, np.int32) - expected).max() <= 2


def test_mixture_is_uniform_over_weights_share_and_depth():
    """With alpha 1 each of two weights, and the share, is uniform."""
    n, settings = 3000, parse_augmix("augmix-w2")
    mixture = jax.jit(jax.vmap(lambda key: sample_mixture(key, settings)))(split_keys(n))
    np.testing.assert_allclose(mixture.weights.sum(1), 1, rtol=1e-5)
    for values in (mixture.weights[:, 0], mixture.share):
        cdf = np.sort(np.asarray(values))
        assert np.abs(cdf - (np.arange(n) + 0.5) / n).max() < 2.2 / np.sqrt(n)
    counts = np.bincount(np.asarray(mixture.depths).ravel(), minlength=5)
    assert counts[0] == counts[4] == 0
    assert np.abs(counts[1:4] - 2 * n / 3).max() < 4.5 * np.sqrt(2 * n / 3)


def test_chain_applies_as_many_operations_as_its_depth():
    policy = RandPolicy((Level("solarize_add", 20, 20),), layers=3)
    for count in range(4):
        run = partial(apply_policy, policy=policy, count=jnp.int32(count))
        assert int(run(jax.random.key(0), BLACK)[0, 0, 0]) == 20 * count
