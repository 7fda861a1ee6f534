"""Boxes, and what is cropped to them and erased in them, against NumPy and Pillow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from resflax.data.augment.box import Box, draw_box, first_fit, inside
from resflax.data.augment.crop import _middle, inception_crop, resized_crop
from resflax.data.augment.erase import cutout, random_erasing
from resflax.data.augment.pixels import round_to_dtype

SIDE = 24
# Of one draw in so many tests a chance of 1e-6 or so to fail, by Kolmogorov's limit.
FAR = 2.7


def keys_of(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def box_of(*numbers):
    return Box(*map(jnp.int32, numbers))


def assert_uniform(values, low, high):
    """Kolmogorov and Smirnov's distance from the uniform distribution."""
    values = np.sort((np.asarray(values, np.float64) - low) / (high - low))
    steps = np.arange(len(values) + 1) / len(values)
    distance = max(np.abs(values - steps[1:]).max(), np.abs(values - steps[:-1]).max())
    assert distance < FAR / np.sqrt(len(values))


def test_the_first_size_that_fits_is_taken():
    rng = np.random.default_rng(0)
    areas, ratios = rng.uniform(0.5, 1, (200, 4)), np.exp(rng.uniform(-0.6, 0.6, (200, 4)))
    run = jax.jit(jax.vmap(lambda a, r: first_fit(a, r, (20, 30, 3))))
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


def test_boxes_have_the_areas_the_ratios_and_the_places_they_should():
    """Of areas small enough for every try to fit, all three are known in closed form."""
    draw = jax.vmap(
        lambda key: draw_box(
            key, (400, 600, 1), area=(0.05, 0.15), ratio=(0.5, 2.0), otherwise=(1, 1)
        )
    )
    fits, box = jax.tree.map(np.asarray, jax.jit(draw)(keys_of(4000)))
    assert fits.all()
    assert_uniform(box.height * box.width / 240_000, 0.05, 0.15)
    assert_uniform(np.log(box.width / box.height), -np.log(2), np.log(2))
    # A place is one of so many: spread over its pixel it is uniform.
    spread = np.random.default_rng(0).uniform(0, 1, (2, 4000))
    assert_uniform((box.top + spread[0]) / (400 - box.height + 1), 0, 1)
    assert_uniform((box.left + spread[1]) / (600 - box.width + 1), 0, 1)


def test_where_nothing_fits_the_box_is_the_middle():
    fits, box = draw_box(
        jax.random.key(0), (10, 100, 3), area=(0.9, 1.0), ratio=(0.75, 1.3), otherwise=(10, 13)
    )
    assert not fits
    assert [int(x) for x in box] == [0, 43, 10, 13]
    # As torchvision: the whole of what is of a ratio of 3/4 to 4/3.
    assert (_middle(10, 100), _middle(100, 10), _middle(9, 10)) == ((10, 13), (13, 10), (9, 10))


@pytest.mark.parametrize(
    "box", [(0, 0, 24, 24), (3, 5, 11, 17), (20, 0, 4, 3), (0, 23, 1, 1), (7, 2, 13, 7)]
)
def test_a_crop_is_stretched_as_pillow_stretches_it(box):
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    top, left, height, width = box
    cut = Image.fromarray(image).crop((left, top, left + width, top + height))
    expected = np.asarray(cut.resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.int32)
    found = CROP(jnp.asarray(image), box_of(*box))
    assert found.dtype == jnp.uint8
    assert np.abs(np.asarray(found, np.int32) - expected).max() <= 1
    if height == width == SIDE:
        np.testing.assert_array_equal(found, image)


CROP = jax.jit(resized_crop)


def test_a_crop_of_floats_is_bilinear_interpolation_to_rounding():
    image = np.random.default_rng(0).standard_normal((SIDE, SIDE, 3)).astype(np.float32)
    top, left, height, width = 3, 5, 11, 17

    def line(start, length):
        at = start + np.clip((np.arange(SIDE) + 0.5) * length / SIDE - 0.5, 0, length - 1)
        low = np.minimum(np.floor(at).astype(int), start + length - 2)
        return low, at - low

    (y, fy), (x, fx) = line(top, height), line(left, width)
    fy, fx = fy[:, None, None], fx[:, None]
    rows = image[y] * (1 - fy) + image[y + 1] * fy
    expected = rows[:, x] * (1 - fx) + rows[:, x + 1] * fx
    found = CROP(jnp.asarray(image), box_of(top, left, height, width))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_inception_crops_cover_8_to_100_percent_of_the_image():
    """On an image whose channels are its rows' and columns' numbers a crop tells its own size."""
    ramp = np.arange(48, dtype=np.float32)
    image = jnp.asarray(np.stack(np.meshgrid(ramp, ramp, indexing="ij"), -1))
    seen = np.asarray(jax.jit(jax.vmap(lambda key: inception_crop(key, image)))(keys_of(1000)))
    # The first and last output pixels are the box's own.
    height = seen[:, -1, 0, 0] - seen[:, 0, 0, 0] + 1
    width = seen[:, 0, -1, 1] - seen[:, 0, 0, 1] + 1
    area, ratio = height * width / 48**2, width / height
    assert area.min() > 0.07
    assert area.max() > 0.97
    assert (np.abs(np.log(ratio)) < np.log(4 / 3) + 2 / height).all()
    # Below a half of the image nearly all tries fit: the area is uniform there.
    assert_uniform(area[area < 0.5], 0.08, 0.5)


def test_cutout_is_a_square_around_any_pixel_cut_off_at_the_edges():
    n, size, side = 3000, 4, 7
    image = jnp.full((side, side, 2), 9, jnp.uint8)
    run = jax.jit(jax.vmap(lambda key: cutout(key, image, size=size)))
    seen = np.asarray(run(keys_of(n)))
    assert set(np.unique(seen)) == {0, 9}
    expected = {}
    for row, column in np.ndindex(side, side):
        x = np.full((side, side, 2), 9, np.uint8)
        x[max(row - 2, 0) : row + 2, max(column - 2, 0) : column + 2] = 0
        expected[x.tobytes()] = 0
    assert len(expected) == side**2
    for x in seen:
        expected[x.tobytes()] += 1
    mean = n / side**2
    assert all(abs(count - mean) < 5.5 * np.sqrt(mean) for count in expected.values())


def test_random_erasing_makes_noise_of_a_box_in_the_share_of_images_it_should():
    n, side = 600, 40
    image = jnp.full((side, side, 3), 100, jnp.uint8)
    run = jax.jit(jax.vmap(lambda key: random_erasing(key, image, probability=0.6)))
    seen = np.asarray(run(keys_of(n)))
    changed = (seen != 100).any(-1)
    erased = changed.any((1, 2))
    assert abs(erased.sum() - 0.6 * n) < 5 * np.sqrt(n * 0.24)
    areas, values = [], []
    for x, where in zip(seen[erased], changed[erased], strict=True):
        rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
        box = x[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        areas.append(box.shape[0] * box.shape[1] / side**2)
        assert where.sum() == (box != 100).any(-1).sum()  # all of it lies in the box
        values.append(box.ravel()[:12])
    assert min(areas) > 0.015
    assert max(areas) < 0.41
    assert_uniform(np.array(areas)[np.array(areas) < 0.25], 0.02, 0.25)
    spread = np.random.default_rng(0).uniform(0, 1, len(np.ravel(values)))
    assert_uniform(np.ravel(values) + spread, 0, 256)


def test_a_mask_is_of_the_pixels_inside_the_image():
    mask = np.zeros((5, 6, 1), bool)
    mask[0:3, 4:6] = True
    np.testing.assert_array_equal(inside(box_of(-1, 4, 4, 5), 5, 6), mask)


def test_stored_values_are_rounded_and_held():
    x = jnp.asarray([-1.0, 0.4, 0.6, 254.7, 300.0])
    assert round_to_dtype(x, jnp.uint8).tolist() == [0, 0, 1, 255, 255]
    np.testing.assert_array_equal(round_to_dtype(x, jnp.float32), x)
