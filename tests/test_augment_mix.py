"""Mixup and CutMix: formulas, distributions, and independence from the rest of the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resflax import UserError
from resflax.data import make_mix
from resflax.data.augment import check_mix
from resflax.data.augment.box import Box
from resflax.data.augment.mix import blend_pair, cutmix, swap_box

N, CLASSES = 4000, 5
SHAPE = (3, 4, 2)


def split_keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def make_batch(dtype=np.float32):
    rng = np.random.default_rng(0)
    images = (50 * rng.standard_normal((N, *SHAPE)) + 120).astype(dtype)
    labels = rng.integers(0, CLASSES, N)
    labels[1::2] = (labels[::2] + rng.integers(1, CLASSES, N // 2)) % CLASSES  # a different class
    targets = np.eye(CLASSES, dtype=np.float32)[labels]
    return jnp.asarray(images), jnp.asarray(0.9 * targets + 0.1 / CLASSES)


def assert_beta_half(values):
    """Checks the Kolmogorov distance from Beta(1/2, 1/2), whose CDF is an arcsine."""
    cdf = 2 / np.pi * np.arcsin(np.sqrt(np.sort(np.clip(np.asarray(values, np.float64), 0, 1))))
    n = len(cdf)
    assert np.abs(cdf - (np.arange(n) + 0.5) / n).max() < 2.2 / np.sqrt(n)


@pytest.mark.slow
def test_blend_pair_is_the_mixup_formula():
    a, b = np.asarray(make_batch()[0][:2])
    result = blend_pair(jnp.asarray([a, b]), jnp.float32(0.3))
    np.testing.assert_allclose(result, [0.3 * a + 0.7 * b, 0.3 * b + 0.7 * a], rtol=1e-5)
    pixels = np.array([[[[10]]], [[[13]]]], np.uint8)
    mixed = blend_pair(jnp.asarray(pixels), jnp.float32(0.3))
    assert mixed.dtype == jnp.uint8
    assert mixed.ravel().tolist() == [12, 11]  # 12.1 and 10.9


@pytest.mark.slow
@pytest.mark.parametrize("box", [(1, 2, 3, 4), (-2, 5, 4, 9), (2, 2, 0, 3)])
def test_swap_box_swaps_pixels_and_returns_their_fraction(box):
    pair = np.asarray(make_batch()[0][:2])
    top, left, height, width = box
    region = slice(max(top, 0), top + height), slice(max(left, 0), left + width)
    expected = pair.copy()
    expected[:, *region] = pair[::-1][:, *region]
    result, weight = swap_box(jnp.asarray(pair), Box(*map(jnp.int32, box)))
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_allclose(weight, 1 - pair[0, *region].size / 24, rtol=1e-6)


@pytest.mark.slow
def test_cutmix_box_has_its_area_around_a_uniform_pixel():
    n, side, weight = 2000, 40, 0.75  # a box of 20 x 20
    pair = jnp.stack([jnp.zeros((side, side, 1)), jnp.ones((side, side, 1))])
    run = jax.jit(jax.vmap(lambda key: cutmix(key, pair, jnp.float32(weight))))
    mixed, weights = run(split_keys(n))
    mask = np.asarray(mixed[:, 0, :, :, 0]) == 1
    np.testing.assert_array_equal(mixed[:, 1, :, :, 0] == 0, mask)
    np.testing.assert_allclose(weights, 1 - mask.mean((1, 2)), rtol=1e-5, atol=1e-6)
    centers = np.arange(side)
    covered = np.abs(centers - centers[:, None] + 0.5) < 10  # [center, pixel]
    boxes = {(rows[:, None] & columns).tobytes() for rows in covered for columns in covered}
    assert {m.tobytes() for m in mask} <= boxes
    # The probability of a pixel is the fraction of centers whose box covers it.
    expected = np.outer(covered.mean(0), covered.mean(0))
    assert (np.abs(mask.mean(0) - expected) < 5.5 * np.sqrt(expected / n)).all()


@pytest.fixture(scope="module")
def mix():
    return jax.jit(make_mix(mixup=0.5, cutmix=0.5))


@pytest.fixture(scope="module")
def mixed(mix):
    return mix(split_keys(N), *make_batch())


@pytest.mark.slow
def test_mix_blends_images_and_targets_of_a_pair_by_one_weight(mixed):
    (images, targets), (x, y) = make_batch(), mixed
    assert (x.dtype, y.dtype, y.shape) == (jnp.float32, jnp.float32, (N, CLASSES))
    a, t, x, y = (np.asarray(v, np.float64) for v in (images, targets, x, y))
    partner = np.arange(N) ^ 1
    b, u = a[partner], t[partner]
    weight = (y - u)[np.arange(N), t.argmax(1)] / (t - u)[np.arange(N), t.argmax(1)]
    np.testing.assert_allclose(y, weight[:, None] * t + (1 - weight)[:, None] * u, atol=1e-6)
    np.testing.assert_allclose(weight, weight[partner], atol=1e-6)  # keeps the sum of both targets
    # CutMix takes each pixel from one image, in the proportion of the target; mixup blends all.
    own = np.isclose(x, a).all(-1)
    pasted = (own | np.isclose(x, b).all(-1)).all((1, 2))
    pasted &= np.abs(12 * weight - np.round(12 * weight)) < 1e-4
    np.testing.assert_allclose(own.mean((1, 2))[pasted], weight[pasted], atol=1e-5)
    image_weight = weight[:, None, None, None]
    blended = np.isclose(x, image_weight * a + (1 - image_weight) * b, rtol=1e-4, atol=1e-3).all(
        (1, 2, 3)
    )
    assert (pasted | blended).all()
    assert abs(pasted.sum() / 2 - N / 4) < 5 * np.sqrt(N / 8) + (pasted & blended).sum() / 2
    assert_beta_half(weight[::2][blended[::2] & ~pasted[::2]])


@pytest.mark.slow
def test_mixed_pair_does_not_depend_on_its_position(mix, mixed):
    """So it does not depend on the device that holds the pair."""
    order = np.random.default_rng(0).permutation(N // 2)[:, None] * 2 + [0, 1]
    permuted = mix(*(x[order.ravel()] for x in (split_keys(N), *make_batch())))
    for result, expected in zip(permuted, mixed, strict=True):
        np.testing.assert_array_equal(result, expected[order.ravel()])


def test_mix_of_an_odd_batch_raises():
    images, targets = make_batch()
    with pytest.raises(UserError, match="7 examples cannot be mixed in pairs: use an even batch"):
        make_mix(mixup=1.0)(split_keys(7), images[:7], targets[:7])


def test_make_mix_without_alphas_is_none():
    assert make_mix() is None


@pytest.mark.parametrize("function", [check_mix, make_mix])
@pytest.mark.parametrize("alpha", [-0.1, float("nan"), float("inf"), True, "1"])
def test_invalid_alpha_raises(function, alpha):
    with pytest.raises(UserError, match=f"cutmix is {alpha!r}: expected an alpha"):
        function(cutmix=alpha)
