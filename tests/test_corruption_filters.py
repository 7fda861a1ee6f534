"""Blur, warp, pixelation, JPEG and color of corrupted images, against SciPy, Pillow and loops."""

import colorsys
import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from resflax.data.corruptions import CORRUPTIONS, blur, digital, filters, photometric, warp

KEY = jax.random.key(3)
RNG = np.random.default_rng(0)


def make_image(height, width, channels=3):
    """A smooth image with an edge and some texture, uint8."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 5 + k) + np.cos(y / (4 + k)) for k in range(channels)], -1)
    edge = np.where(x + 2 * y > width, 30, 0)[..., None]
    texture = np.random.default_rng(1).uniform(-8, 8, (height, width, channels))
    return np.clip(110 + 45 * waves + edge + texture, 0, 255).astype(np.uint8)


def run(function, image, severity, levels):
    compiled = jax.jit(functools.partial(function, levels=levels))
    return np.asarray(compiled(KEY, jnp.asarray(image), jnp.int32(severity)))


@pytest.mark.parametrize(
    ("border", "mode"),
    [(filters.nearest, "nearest"), (filters.reflect, "reflect"), (filters.mirror, "mirror")],
)
def test_gaussian_matrix_matches_scipy(border, mode):
    x = RNG.normal(size=(9, 2))
    for sigma, truncate in ((0.4, 4.0), (2.5, 3.0), (7.0, 3.0)):  # wider than the image
        expected = ndimage.gaussian_filter1d(x, sigma, axis=0, mode=mode, truncate=truncate)
        matrix = filters.gaussian_matrix(9, sigma, border=border, truncate=truncate)
        np.testing.assert_allclose(matrix @ x, expected, atol=1e-12)


@pytest.mark.parametrize("severity", [1, 5])
def test_gaussian_blur_matches_scipy(severity):
    image = make_image(20, 30)
    sigma = CORRUPTIONS["gaussian_blur"].large[severity - 1]
    expected = ndimage.gaussian_filter(image / 255, (sigma, sigma, 0), mode="nearest") * 255
    result = run(blur.gaussian_blur, image.astype(np.float32), severity, (1, 2, 3, 4, 6))
    np.testing.assert_allclose(result, expected, atol=1e-3)


@pytest.mark.parametrize("table", ["small", "large"])
def test_defocus_blur_matches_scipy(table):
    image, levels = make_image(24, 30), getattr(CORRUPTIONS["defocus_blur"], table)
    for severity in (2, 4, 5):
        radius, sigma = levels[severity - 1]
        reach, truncate = (8, 1) if radius <= 8 else (10, 2)
        y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        sharp = (y**2 + x**2 <= radius**2) / (y**2 + x**2 <= radius**2).sum()
        kernel = ndimage.gaussian_filter(sharp, sigma, mode="mirror", radius=truncate)
        expected = np.stack(
            [ndimage.convolve(image[..., c] / 255, kernel, mode="mirror") for c in range(3)], -1
        )
        result = run(blur.defocus_blur, image.astype(np.float32), severity, levels)
        np.testing.assert_allclose(result, 255 * expected, atol=1e-3)


def test_motion_blur_moves_along_a_line():
    radius, sigma, side = 6, 2.0, 41
    image = np.zeros((side, side, 1), np.float32)
    image[20, 20] = 255
    result = run(blur.motion_blur, image, 2, ((9, 5.0), *((radius, sigma),) * 4))[..., 0]
    angle = float(jax.random.uniform(KEY, (), jnp.float32, -blur.MAX_ANGLE, blur.MAX_ANGLE))
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    expected = np.zeros((side, side))
    for i, weight in enumerate(weights / weights.sum()):
        down, right = (int(np.ceil(i * f(angle) - 0.5)) for f in (np.sin, np.cos))
        expected[20 - down, 20 - right] += 255 * weight
    np.testing.assert_allclose(result, expected, atol=1e-3)


def test_motion_blur_of_a_flat_image_changes_nothing():
    flat = np.full((8, 8, 3), 77, np.uint8)
    np.testing.assert_array_equal(run(blur.motion_blur, flat, 5, ((9, 2.5),) * 5), flat)


@pytest.mark.parametrize("shape", [(32, 32), (28, 45)])
@pytest.mark.parametrize("level", [0.95, 0.65, 0.25])
def test_pixelate_matches_pillow(shape, level):
    image = make_image(*shape)
    small = [int(side * level) for side in shape][::-1]
    shrunk = Image.fromarray(image).resize(small, Image.Resampling.BOX)
    expected = np.asarray(shrunk.resize(shape[::-1], Image.Resampling.BOX), np.int32)
    result = run(digital.pixelate, image, 3, (0.9, 0.5, level, 0.4, 0.2)).astype(np.int32)
    assert np.abs(result - expected).max() <= 1
    assert (result != expected).mean() < 0.01


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(32, 32), (45, 30)])
@pytest.mark.parametrize("quality", [80, 40, 7])
def test_jpeg_matches_pillow(shape, quality, channels):
    image, file = make_image(*shape, channels), io.BytesIO()
    pillow = Image.fromarray(image if channels == 3 else image[..., 0])
    pillow.save(file, "JPEG", quality=quality)
    expected = np.asarray(Image.open(file), np.int32).reshape(image.shape)
    levels = (90, 70, quality, 20, 10)
    result = run(digital.jpeg_compression, image, 3, levels).astype(np.int32)
    difference, damage = np.abs(result - expected), np.abs(image - expected)
    assert damage.mean() > 1
    # Most values are equal; a coefficient at a rounding boundary can change a whole block.
    assert difference.mean() < 0.1
    assert difference.max() <= 5


def test_sample_bilinear_matches_scipy():
    x = RNG.uniform(size=(7, 9, 2)).astype(np.float32)
    rows, columns = RNG.uniform(-12, 20, (2, 7, 9)).astype(np.float32)
    for border, mode in ((filters.reflect, "reflect"), (filters.mirror, "mirror")):
        result = warp.sample_bilinear(
            jnp.asarray(x), jnp.asarray(rows), jnp.asarray(columns), border
        )
        for c in range(2):
            expected = ndimage.map_coordinates(x[..., c], [rows, columns], order=1, mode=mode)
            np.testing.assert_allclose(result[..., c], expected, atol=1e-5)


def test_affine_from_points_maps_the_points():
    source, target = RNG.normal(size=(2, 3, 2)).astype(np.float32)
    matrix, offset = warp.affine_from_points(jnp.asarray(source), jnp.asarray(target))
    mapped = source @ np.asarray(matrix).T + np.asarray(offset)
    np.testing.assert_allclose(mapped, target, atol=1e-4)


def test_elastic_transform_matches_scipy():
    height, width, level = 24, 32, (0.08, 0.06, 0.06)
    image = make_image(height, width).astype(np.float32)
    u = np.asarray(jax.random.uniform(KEY, (2 * height * width + 6,), jnp.float32, -1, 1))
    side, moves = 24, 24 * level[2] * u[:6].reshape(3, 2)
    corners = np.array([[16, 12], [16, 12], [16, 12]]) + 8 * np.array([[1, 1], [1, -1], [-1, -1]])
    ones = np.ones((3, 1))
    # From moved corners to corners; columns of the solution are x and y.
    solution = np.linalg.solve(np.hstack([corners + moves, ones]), corners)
    y, x = np.mgrid[:height, :width]
    source_x, source_y = np.moveaxis(np.stack([x, y, np.ones_like(x)], -1) @ solution, -1, 0)
    noise = u[6:].reshape(height, width, 2)
    down, right = (
        side * level[0] * ndimage.gaussian_filter(noise[..., i], side * level[1], truncate=3)
        for i in range(2)
    )
    result = run(warp.elastic_transform, image, 1, (level,) * 5)
    for c in range(3):
        moved = ndimage.map_coordinates(image[..., c], [source_y, source_x], order=1, mode="mirror")
        expected = ndimage.map_coordinates(moved, [y + down, x + right], order=1, mode="reflect")
        np.testing.assert_allclose(result[..., c], expected, atol=0.02)


COLORS = np.array(
    [[0, 0, 0], [255, 255, 255], [90, 90, 90], [10, 200, 30], [250, 3, 77], [1, 0, 0]], np.uint8
)


def through_hsv(change):
    """Applies `change` to hue, saturation and value of each color, by the standard library."""
    colors = [change(*colorsys.rgb_to_hsv(*(color / 255))) for color in COLORS]
    return np.array([[colorsys.hsv_to_rgb(*color) for color in colors]]) * 255


def test_brightness_adds_to_the_value_of_hsv():
    result = run(
        photometric.brightness, COLORS[None].astype(np.float32), 4, (0.1, 0.2, 0.3, 0.4, 1)
    )
    expected = through_hsv(lambda h, s, v: (h, s, min(v + 0.4, 1)))
    np.testing.assert_allclose(result, expected, atol=1e-3)


@pytest.mark.parametrize("level", [(0.3, 0), (2.0, 0.1), (20.0, 0.2)])
def test_saturate_scales_the_saturation_of_hsv(level):
    result = run(photometric.saturate, COLORS[None].astype(np.float32), 1, (level,) * 5)
    expected = through_hsv(lambda h, s, v: (h, min(level[0] * s + level[1], 1), v))
    np.testing.assert_allclose(result, expected, atol=1e-3)


def test_contrast_scales_the_difference_to_the_mean():
    image = make_image(9, 8)
    mean = image.mean((0, 1))
    result = run(photometric.contrast, image, 3, (0.75, 0.5, 0.4, 0.3, 0.15))
    np.testing.assert_allclose(result, np.floor((image - mean) * 0.4 + mean + 1e-3), atol=1)
