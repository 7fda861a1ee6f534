"""Random boxes, resized crops and erasing, against NumPy and Pillow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from resflax.data.augment.box import Box, box_mask, first_fitting_size, sample_box
from resflax.data.augment.crop import inception_crop, resized_crop
from resflax.data.augment.erase import cutout, random_erasing
from resflax.data.augment.pixels import round_to_dtype
from resflax.data.crops import largest_size

SIDE = 24
# Limit of the Kolmogorov statistic that fails about once in 1e6 draws.
KOLMOGOROV_LIMIT = 2.7


def split_keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def make_box(*numbers):
    return Box(*map(jnp.int32, numbers))


def assert_uniform(values, low, high):
    """Checks the Kolmogorov-Smirnov distance from the uniform distribution."""
    values = np.sort((np.asarray(values, np.float64) - low) / (high - low))
    steps = np.arange(len(values) + 1) / len(values)
    distance = max(np.abs(values - steps[1:]).max(), np.abs(values - steps[:-1]).max())
    assert distance < KOLMOGOROV_LIMIT / np.sqrt(len(values))


def test_first_fitting_size_matches_a_loop():
    rng = np.random.default_rng(0)
    areas, ratios = rng.uniform(0.5, 1, (200, 4)), np.exp(rng.uniform(-0.6, 0.6, (200, 4)))
    run = jax.jit(jax.vmap(lambda a, r: first_fitting_size(a, r, (20, 30, 3))))
    fits, (height, width) = run(areas.astype(np.float32), ratios.astype(np.float32))
    for i in range(200):
        expected = None
        for area, ratio in zip(areas[i] * 600, ratios[i], strict=True):
            h, w = round(np.sqrt(area / ratio)), round(np.sqrt(area * ratio))
            if expected is None and 0 < h <= 20 and 0 < w <= 30:
                expected = (h, w)
        assert bool(fits[i]) == (expected is not None)
        if expected:
            assert (int(height[i]), int(width[i])) == expected
    assert 0 < fits.sum() < 200


def test_sampled_boxes_have_uniform_area_log_ratio_and_position():
    """If the areas are small enough for every attempt to fit, all distributions are known."""
    sample = jax.vmap(
        lambda key: sample_box(
            key, (400, 600, 1), area=(0.05, 0.15), ratio=(0.5, 2.0), fallback=(1, 1)
        )
    )
    fits, box = jax.tree.map(np.asarray, jax.jit(sample)(split_keys(4000)))
    assert fits.all()
    assert_uniform(box.height * box.width / 240_000, 0.05, 0.15)
    assert_uniform(np.log(box.width / box.height), -np.log(2), np.log(2))
    # A position is an integer; with uniform noise within its pixel it is uniform.
    noise = np.random.default_rng(0).uniform(0, 1, (2, 4000))
    assert_uniform((box.top + noise[0]) / (400 - box.height + 1), 0, 1)
    assert_uniform((box.left + noise[1]) / (600 - box.width + 1), 0, 1)


@pytest.mark.slow
def test_sample_box_falls_back_to_the_center():
    fits, box = sample_box(
        jax.random.key(0), (10, 100, 3), area=(0.9, 1.0), ratio=(0.75, 1.3), fallback=(10, 13)
    )
    assert not fits
    assert [int(x) for x in box] == [0, 43, 10, 13]
    # As torchvision: the largest size with a ratio of 3/4 to 4/3.
    sizes = [largest_size(*shape) for shape in ((10, 100), (100, 10), (9, 10))]
    assert sizes == [(10, 13), (13, 10), (9, 10)]


@pytest.mark.parametrize(
    "box", [(0, 0, 24, 24), (3, 5, 11, 17), (20, 0, 4, 3), (0, 23, 1, 1), (7, 2, 13, 7)]
)
def test_resized_crop_matches_pillow(box):
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    top, left, height, width = box
    cropped = Image.fromarray(image).crop((left, top, left + width, top + height))
    expected = np.asarray(cropped.resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.int32)
    result = CROP(jnp.asarray(image), make_box(*box))
    assert result.dtype == jnp.uint8
    assert np.abs(np.asarray(result, np.int32) - expected).max() <= 1
    if height == width == SIDE:
        np.testing.assert_array_equal(result, image)


CROP = jax.jit(resized_crop)


def test_resized_crop_of_floats_is_bilinear_interpolation():
    image = np.random.default_rng(0).standard_normal((SIDE, SIDE, 3)).astype(np.float32)
    top, left, height, width = 3, 5, 11, 17

    def neighbors(start, length):
        position = start + np.clip((np.arange(SIDE) + 0.5) * length / SIDE - 0.5, 0, length - 1)
        low = np.minimum(np.floor(position).astype(int), start + length - 2)
        return low, position - low

    (y, fy), (x, fx) = neighbors(top, height), neighbors(left, width)
    fy, fx = fy[:, None, None], fx[:, None]
    rows = image[y] * (1 - fy) + image[y + 1] * fy
    expected = rows[:, x] * (1 - fx) + rows[:, x + 1] * fx
    result = CROP(jnp.asarray(image), make_box(top, left, height, width))
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_inception_crops_cover_8_to_100_percent_of_the_image():
    """The channels of the image are row and column numbers, from which the crop is computed."""
    ramp = np.arange(48, dtype=np.float32)
    image = jnp.asarray(np.stack(np.meshgrid(ramp, ramp, indexing="ij"), -1))
    results = np.asarray(
        jax.jit(jax.vmap(lambda key: inception_crop(key, image)))(split_keys(1000))
    )
    # The first and last output pixels are corners of the box.
    height = results[:, -1, 0, 0] - results[:, 0, 0, 0] + 1
    width = results[:, 0, -1, 1] - results[:, 0, 0, 1] + 1
    area, ratio = height * width / 48**2, width / height
    assert area.min() > 0.07
    assert area.max() > 0.97
    assert (np.abs(np.log(ratio)) < np.log(4 / 3) + 2 / height).all()
    # Below half of the image nearly all attempts fit, so the area is uniform there.
    assert_uniform(area[area < 0.5], 0.08, 0.5)


def test_cutout_is_a_square_around_any_pixel_clipped_at_edges():
    n, size, side = 3000, 4, 7
    image = jnp.full((side, side, 2), 9, jnp.uint8)
    run = jax.jit(jax.vmap(lambda key: cutout(key, image, size=size)))
    results = np.asarray(run(split_keys(n)))
    assert set(np.unique(results)) == {0, 9}
    expected = {}
    for row, column in np.ndindex(side, side):
        x = np.full((side, side, 2), 9, np.uint8)
        x[max(row - 2, 0) : row + 2, max(column - 2, 0) : column + 2] = 0
        expected[x.tobytes()] = 0
    assert len(expected) == side**2
    for x in results:
        expected[x.tobytes()] += 1
    mean = n / side**2
    assert all(abs(count - mean) < 5.5 * np.sqrt(mean) for count in expected.values())


def test_random_erasing_fills_a_box_with_noise_by_probability():
    n, side = 600, 40
    image = jnp.full((side, side, 3), 100, jnp.uint8)
    run = jax.jit(jax.vmap(lambda key: random_erasing(key, image, probability=0.6)))
    results = np.asarray(run(split_keys(n)))
    changed = (results != 100).any(-1)
    erased = changed.any((1, 2))
    assert abs(erased.sum() - 0.6 * n) < 5 * np.sqrt(n * 0.24)
    areas, values = [], []
    for x, mask in zip(results[erased], changed[erased], strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = x[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        areas.append(box.shape[0] * box.shape[1] / side**2)
        assert mask.sum() == (box != 100).any(-1).sum()  # nothing outside the box changed
        values.append(box.ravel()[:12])
    assert min(areas) > 0.015
    assert max(areas) < 0.41
    assert_uniform(np.array(areas)[np.array(areas) < 0.25], 0.02, 0.25)
    noise = np.random.default_rng(0).uniform(0, 1, len(np.ravel(values)))
    assert_uniform(np.ravel(values) + noise, 0, 256)


def test_box_mask_is_clipped_to_the_image():
    mask = np.zeros((5, 6, 1), bool)
    mask[0:3, 4:6] = True
    np.testing.assert_array_equal(box_mask(make_box(-1, 4, 4, 5), 5, 6), mask)


def test_round_to_dtype_rounds_and_clips_integers():
    x = jnp.asarray([-1.0, 0.4, 0.6, 254.7, 300.0])
    assert round_to_dtype(x, jnp.uint8).tolist() == [0, 0, 1, 255, 255]
    np.testing.assert_array_equal(round_to_dtype(x, jnp.float32), x)
