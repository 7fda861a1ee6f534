"""Mixup and CutMix: their formulas, their laws of chance, and pairs that no device count parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resflax import UserError
from resflax.data import make_mix
from resflax.data.augment.box import Box
from resflax.data.augment.mix import blend_pair, cutmix, paste_pair

N, CLASSES = 4000, 5
SHAPE = (3, 4, 2)


def keys_of(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def batch(dtype=np.float32):
    rng = np.random.default_rng(0)
    images = (50 * rng.standard_normal((N, *SHAPE)) + 120).astype(dtype)
    labels = rng.integers(0, CLASSES, N)
    labels[1::2] = (labels[::2] + rng.integers(1, CLASSES, N // 2)) % CLASSES  # another one's
    targets = np.eye(CLASSES, dtype=np.float32)[labels]
    return jnp.asarray(images), jnp.asarray(0.9 * targets + 0.1 / CLASSES)


def assert_beta_half(values):
    """Kolmogorov's distance from Beta(1/2, 1/2), the arcsine law, whose distribution is closed."""
    law = 2 / np.pi * np.arcsin(np.sqrt(np.sort(np.clip(np.asarray(values, np.float64), 0, 1))))
    n = len(law)
    assert np.abs(law - (np.arange(n) + 0.5) / n).max() < 2.2 / np.sqrt(n)


def test_a_blended_pair_is_the_formula():
    a, b = np.asarray(batch()[0][:2])
    found = blend_pair(jnp.asarray([a, b]), jnp.float32(0.3))
    np.testing.assert_allclose(found, [0.3 * a + 0.7 * b, 0.3 * b + 0.7 * a], rtol=1e-5)
    round_to_dtype = np.array([[[[10]]], [[[13]]]], np.uint8)
    mixed = blend_pair(jnp.asarray(round_to_dtype), jnp.float32(0.3))
    assert mixed.dtype == jnp.uint8
    assert mixed.ravel().tolist() == [12, 11]  # 12.1 and 10.9


@pytest.mark.parametrize("box", [(1, 2, 3, 4), (-2, 5, 4, 9), (2, 2, 0, 3)])
def test_a_pasted_pair_exchanges_what_lies_in_the_box_and_counts_it(box):
    pair = np.asarray(batch()[0][:2])
    top, left, height, width = box
    here = slice(max(top, 0), top + height), slice(max(left, 0), left + width)
    expected = pair.copy()
    expected[:, *here] = pair[::-1][:, *here]
    found, share = paste_pair(jnp.asarray(pair), Box(*map(jnp.int32, box)))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(share, 1 - pair[0, *here].size / 24, rtol=1e-6)


def test_the_box_of_cutmix_has_its_area_and_lies_around_any_pixel():
    n, side, share = 2000, 40, 0.75  # a box of 20 x 20
    pair = jnp.stack([jnp.zeros((side, side, 1)), jnp.ones((side, side, 1))])
    run = jax.jit(jax.vmap(lambda key: cutmix(key, pair, jnp.float32(share))))
    mixed, shares = run(keys_of(n))
    mask = np.asarray(mixed[:, 0, :, :, 0]) == 1
    np.testing.assert_array_equal(mixed[:, 1, :, :, 0] == 0, mask)
    np.testing.assert_allclose(shares, 1 - mask.mean((1, 2)), rtol=1e-5, atol=1e-6)
    middles = np.arange(side)
    line = np.abs(middles - middles[:, None] + 0.5) < 10  # which pixels each middle's box covers
    boxes = {(rows[:, None] & columns).tobytes() for rows in line for columns in line}
    assert {m.tobytes() for m in mask} <= boxes
    # A pixel is covered as often as there are middles around it.
    expected = np.outer(line.mean(0), line.mean(0))
    assert (np.abs(mask.mean(0) - expected) < 5.5 * np.sqrt(expected / n)).all()


@pytest.fixture(scope="module")
def mix():
    return jax.jit(make_mix(mixup=0.5, cutmix=0.5))


@pytest.fixture(scope="module")
def mixed(mix):
    return mix(keys_of(N), *batch())


def test_each_example_is_mixed_with_its_neighbour_alone_and_its_target_as_much(mixed):
    (images, targets), (x, y) = batch(), mixed
    assert (x.dtype, y.dtype, y.shape) == (jnp.float32, jnp.float32, (N, CLASSES))
    a, t, x, y = (np.asarray(v, np.float64) for v in (images, targets, x, y))
    partner = np.arange(N) ^ 1
    b, u = a[partner], t[partner]
    share = (y - u)[np.arange(N), t.argmax(1)] / (t - u)[np.arange(N), t.argmax(1)]
    np.testing.assert_allclose(y, share[:, None] * t + (1 - share)[:, None] * u, atol=1e-6)
    np.testing.assert_allclose(share, share[partner], atol=1e-6)  # so both targets' sum is kept
    # By CutMix each pixel is one of two, as many as the target says; else all are blended.
    own = np.isclose(x, a).all(-1)
    pasted = (own | np.isclose(x, b).all(-1)).all((1, 2))
    pasted &= np.abs(12 * share - np.round(12 * share)) < 1e-4
    np.testing.assert_allclose(own.mean((1, 2))[pasted], share[pasted], atol=1e-5)
    weight = share[:, None, None, None]
    blended = np.isclose(x, weight * a + (1 - weight) * b, rtol=1e-4, atol=1e-3).all((1, 2, 3))
    assert (pasted | blended).all()
    assert abs(pasted.sum() / 2 - N / 4) < 5 * np.sqrt(N / 8) + (pasted & blended).sum() / 2
    assert_beta_half(share[::2][blended[::2] & ~pasted[::2]])


def test_a_pair_is_mixed_alike_wherever_in_a_batch_it_stands(mix, mixed):
    """So also on whatever device, if that has both of it."""
    order = np.random.default_rng(0).permutation(N // 2)[:, None] * 2 + [0, 1]
    moved = mix(*(x[order.ravel()] for x in (keys_of(N), *batch())))
    for found, expected in zip(moved, mixed, strict=True):
        np.testing.assert_array_equal(found, expected[order.ravel()])


def test_an_odd_batch_cannot_be_mixed():
    images, targets = batch()
    with pytest.raises(UserError, match="7 examples cannot be mixed in pairs: use an even batch"):
        make_mix(mixup=1.0)(keys_of(7), images[:7], targets[:7])


def test_no_alpha_is_no_mixing_and_a_wrong_one_is_refused():
    assert make_mix() is None
    for alpha in (-0.1, float("nan"), float("inf"), True, "1"):
        with pytest.raises(UserError, match=f"cutmix is {alpha!r}: expected an alpha"):
            make_mix(cutmix=alpha)
