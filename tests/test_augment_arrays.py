"""Augmentation of signals, images and volumes of any numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resflax.data import make_augment

RNG = np.random.default_rng(0)


def augmented(arrays, **settings):
    keys = jax.random.split(jax.random.key(0), len(arrays))
    return np.asarray(make_augment(**settings)(keys, jnp.asarray(arrays)))


SHAPES = [(20, 30, 2), (20, 8, 9, 1), (20, 7, 6, 5, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_shift_rolls_each_axis(shape):
    x = RNG.standard_normal(shape).astype(np.float32)
    space, found = range(1, x.ndim - 1), set()
    for before, after in zip(x, augmented(x, shift=2), strict=True):
        rolls = [
            offsets
            for offsets in np.ndindex(*[5] * len(space))
            if np.array_equal(np.roll(before, np.subtract(offsets, 2), range(len(space))), after)
        ]
        assert len(rolls) == 1
        found.update(rolls)
    assert len(found) > 3


@pytest.mark.parametrize("shape", SHAPES)
def test_pad_crop_is_a_slice_of_the_padded_array(shape):
    x = RNG.standard_normal(shape).astype(np.float32)
    dimensions = x.ndim - 2
    for before, after in zip(x, augmented(x, pad_crop=1), strict=True):
        padded = np.pad(before, [(1, 1)] * dimensions + [(0, 0)])
        slices = [
            padded[tuple(slice(a, a + n) for a, n in zip(start, before.shape, strict=False))]
            for start in np.ndindex(*[3] * dimensions)
        ]
        assert any(np.array_equal(part, after) for part in slices)


def test_noise_is_in_units_of_the_standard_deviation():
    x = RNG.standard_normal((50, 400, 2)).astype(np.float32) * np.array([1, 10], np.float32)
    np.testing.assert_allclose((augmented(x, noise=0.1) - x).std((0, 1)), [0.1, 1.0], rtol=0.03)


@pytest.mark.parametrize("shape", SHAPES)
def test_mask_is_a_box_of_the_mean(shape):
    x = RNG.standard_normal(shape).astype(np.float32)
    largest = 0
    for before, after in zip(x, augmented(x, mask=3), strict=True):
        changed = (before != after).any(-1)
        assert 1 <= changed.sum() <= 3 ** (x.ndim - 2)
        largest = max(largest, changed.sum())
        mean = before.mean(tuple(range(before.ndim - 1)))
        np.testing.assert_allclose(
            after[changed], np.broadcast_to(mean, after[changed].shape), atol=1e-5
        )
    assert largest == 3 ** (x.ndim - 2)
