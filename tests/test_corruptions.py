"""The table of corruptions: determinism, severities, dtypes; noise and fog statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resflax.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt_batch, noise, weather
from resflax.errors import UserError

SIDE = 32
# Corruptions whose severities are ordered; saturation decreases and then increases, and the elastic
# transform trades the affine map for displacements.
ORDERED = sorted(set(CORRUPTIONS) - {"saturate", "elastic_transform"})


def make_images(count=4, side=SIDE, channels=3):
    """Smooth images with some texture, whose values do not touch 0 and 255."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    phases = rng.uniform(0, 6, (count, 1, 1, channels))
    waves = np.sin(9 * x[..., None] + phases) + np.cos(7 * y[..., None] - phases)
    texture = rng.uniform(-12, 12, (count, side, side, channels))
    return jnp.asarray(128 + 45 * waves + texture, jnp.uint8)


@functools.cache
def compiled(name):
    return jax.jit(functools.partial(corrupt_batch, name), static_argnames="seed")


def corrupt(name, images, severity, *, indices=None, seed=0):
    indices = jnp.arange(len(images)) if indices is None else jnp.asarray(indices)
    return np.asarray(compiled(name)(images, indices, jnp.int32(severity), seed=seed))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruption_depends_on_seed_and_index_only(name):
    images = make_images()
    result = corrupt(name, images, 3)
    assert result.dtype == np.uint8
    assert result.shape == images.shape
    assert (result != np.asarray(images)).any()
    np.testing.assert_array_equal(
        result[::-1], corrupt(name, images[::-1], 3, indices=[3, 2, 1, 0])
    )
    assert compiled(name)._cache_size() == 1  # also for other severities, see below


@pytest.mark.parametrize("name", ORDERED)
def test_damage_increases_with_severity(name):
    images = make_images()
    damage = [
        np.abs(corrupt(name, images, severity) - np.asarray(images, np.float64)).mean()
        for severity in SEVERITIES
    ]
    assert damage[0] > 0
    # Two severities may be equal for 32 pixels: a disk of radius 0.3 or 0.5 is one pixel.
    assert damage == sorted(damage)
    assert damage[-1] > 1.1 * damage[0]
    assert compiled(name)._cache_size() == 1


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruption_of_gray_images(name):
    gray = make_images(1, side=28, channels=1)
    result = corrupt(name, gray, 5)
    assert result.shape == gray.shape
    assert (result == np.asarray(gray)).all() == CORRUPTIONS[name].needs_color


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "impulse_noise", "fog"])
def test_random_corruption_differs_by_seed_and_example(name):
    images = jnp.broadcast_to(make_images(1), (2, SIDE, SIDE, 3))
    first, second = corrupt(name, images, 3)
    assert (first != second).any()
    assert (corrupt(name, images, 3, seed=1)[0] != first).any()


def test_corruption_of_floats_is_not_rounded():
    images = make_images(1)
    rounded = corrupt("contrast", images, 2)
    exact = corrupt("contrast", images.astype(jnp.float32), 2)
    assert exact.dtype == np.float32
    np.testing.assert_array_equal(np.floor(exact + 1e-3), rounded)


def test_large_images_get_the_parameters_of_imagenet_c():
    image = jnp.full((160, 160, 3), 100, jnp.uint8)
    result = CORRUPTIONS["brightness"](jax.random.key(0), image, 5)
    assert np.unique(result).tolist() == [227]  # 100 + 0.5 * 255, rounded down


def test_unknown_corruption_is_rejected():
    with pytest.raises(UserError, match="unknown corruption 'gausian_noise': did you mean gauss"):
        corrupt_batch("gausian_noise", make_images(1), jnp.arange(1), 1, seed=0)
    with pytest.raises(ValueError, match="severity is 6: expected 1, 2, 3, 4 or 5"):
        CORRUPTIONS["fog"](jax.random.key(0), make_images(1)[0], 6)


FLAT = jnp.full((64, 64, 3), 100.0, jnp.float32)
SAMPLES = FLAT.size
KEY = jax.random.key(7)


def assert_moments(x, mean, variance):
    """Checks two moments to five standard errors (of a Gaussian)."""
    assert abs(x.mean() - mean) < 5 * np.sqrt(variance / SAMPLES)
    assert abs(x.var() / variance - 1) < 5 * np.sqrt(2 / SAMPLES) + 0.01


def test_gaussian_noise_has_the_standard_deviation():
    x = np.asarray(noise.gaussian_noise(KEY, FLAT, 2, (0.5, 0.06, 0.5, 0.5, 0.5)))
    assert_moments(x, 100, (0.06 * 255) ** 2)


@pytest.mark.parametrize("photons", [3, 60, 500])
def test_shot_noise_is_poisson(photons):
    x = np.asarray(noise.shot_noise(KEY, FLAT, 1, (photons,) * 5)) * photons / 255
    np.testing.assert_allclose(x, np.round(x), atol=1e-3)
    mean = photons * 100 / 255
    unclipped = mean + 6 * np.sqrt(mean) < photons
    if unclipped:
        assert_moments(x, mean, mean)
    # P(0) = exp(-mean), also where white clips the distribution.
    expected = np.exp(-mean)
    error = 5 * np.sqrt(expected * (1 - expected) / SAMPLES)
    assert abs((np.round(x) == 0).mean() - expected) <= error


def test_shot_noise_cdfs_match_scipy():
    stats = pytest.importorskip("scipy.stats")
    cdfs = noise.poisson_cdfs(60)
    expected = stats.poisson.cdf(np.arange(cdfs.shape[1]), 60 * np.arange(256)[:, None] / 255)
    np.testing.assert_allclose(cdfs, expected, atol=1e-12)
    assert cdfs[:, -1].min() > 1 - 1e-9


def test_shot_noise_of_black_is_black():
    assert not np.asarray(noise.shot_noise(KEY, 0 * FLAT, 1, (3,) * 5)).any()


def test_impulse_noise_has_the_probability():
    x = np.round(noise.impulse_noise(KEY, FLAT, 1, (0.2,) * 5))
    assert set(np.unique(x)) == {0, 100, 255}
    for value in (0, 255):
        assert abs((x == value).mean() - 0.1) < 5 * np.sqrt(0.09 / SAMPLES)


def diamond_square(u, side, decay):
    """The algorithm as loops over points, with the random numbers in the order of `fog`."""
    heights, scale, used, step = np.zeros((side, side)), 1.0, 0, side
    while step >= 2:
        half, count = step // 2, side // step
        steps = scale * u[used : used + 3 * count**2].reshape(3, count, count)
        used += 3 * count**2
        at = lambda y, x: heights[y % side, x % side]  # noqa: E731
        for i, j in np.ndindex(count, count):
            y, x = i * step, j * step
            corners = at(y, x) + at(y + step, x) + at(y, x + step) + at(y + step, x + step)
            heights[y + half, x + half] = corners / 4 + steps[0, i, j]
        for i, j in np.ndindex(count, count):
            y, x = i * step, j * step
            for plane, (v, w) in enumerate([(y, x + half), (y + half, x)], start=1):
                ring = at(v - half, w) + at(v + half, w) + at(v, w - half) + at(v, w + half)
                heights[v, w] = ring / 4 + steps[plane, i, j]
        step, scale = half, scale / decay**2
    heights -= heights.min()
    return heights / heights.max()


@pytest.mark.parametrize("decay", [1.75, 3])
def test_plasma_fractal_matches_loops(decay):
    side = 16
    u = np.asarray(jax.random.uniform(KEY, (side**2 - 1,), jnp.float32, -1, 1), np.float64)
    expected = diamond_square(u, side, decay)
    result = np.asarray(weather.plasma_fractal(KEY, side, decay))
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_plasma_fractal_needs_a_power_of_two():
    with pytest.raises(ValueError, match="side is 24: expected a power of two"):
        weather.plasma_fractal(KEY, 24, 2.0)


def test_fog_keeps_the_maximum_and_adds_light():
    image = make_images(1)[0].astype(jnp.float32)
    result = np.asarray(weather.fog(KEY, image, 1, ((1.5, 2),) * 5))
    maximum = float(image.max()) / 255
    scale = maximum / (maximum + 1.5)
    assert result.max() <= 255 * maximum + 1e-3
    # Between the darkened image without and with full fog.
    assert (result >= np.asarray(image) * scale - 1e-3).all()
    assert (result <= (np.asarray(image) + 1.5 * 255) * scale + 1e-3).all()
