"""Color operations, warps, RandAugment and color jitter, against Pillow and `colorsys`."""

import colorsys
import itertools
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from resflax.data.augment import color
from resflax.data.augment.affine import WARPS, warp, warp_matrix
from resflax.data.augment.jitter import JITTERS, apply_jitter, color_jitter
from resflax.data.augment.levels import PAPER, arguments
from resflax.data.augment.ops import COLOR_OPS, apply_op
from resflax.data.augment.rand import rand_augment, sample_op

SIDE = 24  # an image of fewer than 256 pixels is not equalized


def make_image(channels=3, seed=0, low=20, high=200):
    """One smooth channel and others of noise, without the darkest and brightest values."""
    rng = np.random.default_rng(seed)
    ramp = np.add.outer(np.arange(SIDE), 5 * np.arange(SIDE))[..., None] + low
    noise = rng.integers(low, high, (SIDE, SIDE, channels))
    return np.where(np.arange(channels) == 0, ramp, noise).astype(np.uint8)


IMAGES = {
    "colors": make_image(),
    "gray": make_image(1),
    "flat": np.full((SIDE, SIDE, 3), 77, np.uint8),
    "black and white": make_image(seed=1) // 128 * 255,
}


def to_pillow(image):
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


ENHANCERS = {
    color.saturation: ImageEnhance.Color,
    color.contrast: ImageEnhance.Contrast,
    color.brightness: ImageEnhance.Brightness,
    color.sharpness: ImageEnhance.Sharpness,
}


OPS = tuple(row.op for row in PAPER)


def paper_argument(op, magnitude, sign, shape):
    """The argument that RandAugment gives an operation at a magnitude."""
    return arguments(PAPER, magnitude, 10, sign, shape)[op]


def enhance(function, factor, image):
    return ENHANCERS[function](image).enhance(factor)


# The function of this package, Pillow's, and the settings to compare them with.
FUNCTIONS = {
    "autocontrast": (lambda image, _: color.autocontrast(image), ImageOps.autocontrast, [(0,)]),
    "equalize": (lambda image, _: color.equalize(image), ImageOps.equalize, [(None,)]),
    "solarize": (color.solarize, ImageOps.solarize, [(0,), (100,), (256,)]),
    "posterize": (color.posterize, ImageOps.posterize, [(1,), (4,), (8,)]),
} | {
    ours.__name__: (
        ours,
        lambda image, factor, ours=ours: enhance(ours, factor, image),
        [(0.1,), (0.73,), (1.0,), (1.9,)],
    )
    for ours in ENHANCERS
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_color_function_matches_pillow_to_one_gray_level(name):
    ours, theirs, settings = FUNCTIONS[name]
    ours = jax.jit(ours, static_argnums=() if ours in ENHANCERS else 1)
    for image, setting in itertools.product(IMAGES.values(), settings):
        expected = np.asarray(theirs(to_pillow(image), *setting), np.int32).reshape(image.shape)
        result = ours(jnp.asarray(image), *setting)
        assert result.dtype == jnp.uint8
        assert np.abs(np.asarray(result, np.int32) - expected).max() <= 1


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.0, 0.25])
def test_hue_rotates_hsv_colors(shift):
    image = np.concatenate([make_image(), IMAGES["black and white"]])
    results = np.asarray(jax.jit(color.hue)(jnp.asarray(image), jnp.float32(shift)), np.int32)
    for pixel, result in zip(image.reshape(-1, 3), results.reshape(-1, 3), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*pixel / 255)
        np.testing.assert_allclose(
            result, 255 * np.array(colorsys.hsv_to_rgb((h + shift) % 1, s, v)), atol=0.51
        )


def pillow_matrix(name, amount, width, height):
    """Coefficients by AutoAugment's definitions; `rotate` by Pillow's documentation."""
    if name == "rotate":
        angle = -np.radians(30 * amount)
        a, b, d, e = np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle)
        x, y = width / 2, height / 2
        return a, b, x - a * x - b * y, d, e, y - d * x - e * y
    slope, x, y = 0.3 * amount, 150 / 331 * width * amount, 150 / 331 * height * amount
    return {
        "shear_x": (1, slope, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, slope, 1, 0),
        "translate_x": (1, 0, x, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, y),
    }[name]


@pytest.mark.slow
@pytest.mark.parametrize("amount", [-0.9, 0.37])
@pytest.mark.parametrize("name", WARPS)
def test_warp_matches_pillow_nearest_neighbor(name, amount):
    """Except where rounding decides the neighbor: Pillow has a resolution of 2^-16 pixels."""
    image = make_image()[:, :11]
    height, width, _ = image.shape
    matrix = pillow_matrix(name, amount, width, height)
    gray = (128, 128, 128)
    if name == "rotate":
        theirs = to_pillow(image).rotate(30 * amount, fillcolor=gray)
    else:
        theirs = to_pillow(image).transform(
            (width, height), Image.Transform.AFFINE, matrix, fillcolor=gray
        )
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    a, b, c, d, e, f = matrix
    source = np.stack([a * x + b * y + c, d * x + e * y + f])
    unambiguous = (np.abs(source - np.round(source)) > 2e-3).all(0)
    assert unambiguous.mean() > 0.8
    argument = paper_argument(OPS.index(name), 10 * amount, 1.0, image.shape)
    result = jax.jit(warp)(jnp.asarray(image), warp_matrix(name, argument, height, width))
    np.testing.assert_array_equal(np.asarray(result)[unambiguous], np.asarray(theirs)[unambiguous])


@jax.jit
@jax.vmap
def apply_paper_op(image, op, sign):
    return apply_op(image, op, paper_argument(op, 9, sign, image.shape), OPS)


# Every operation with both signs.
EVERY_OP = np.tile(np.arange(14), 2), np.repeat(np.float32([1, -1]), 14)


def expected_op(name, image, sign, magnitude):
    """Applies an operation with Pillow, by RandAugment's paper and AutoAugment's table."""
    strength = magnitude / 10
    if name == "rotate":
        return to_pillow(image).rotate(30 * sign * strength, fillcolor=(128,) * 3)
    if name in WARPS:
        size = image.shape[1], image.shape[0]
        matrix = pillow_matrix(name, sign * strength, *size)
        fill = (128,) * 3
        return to_pillow(image).transform(size, Image.Transform.AFFINE, matrix, fillcolor=fill)
    factor = max(1 + 0.9 * strength * sign, 0.1)
    return {
        "identity": lambda x: x,
        "autocontrast": ImageOps.autocontrast,
        "equalize": ImageOps.equalize,
        "solarize": lambda x: ImageOps.solarize(x, max(256 - round(256 * strength), 0)),
        "posterize": lambda x: ImageOps.posterize(x, max(8 - round(4 * strength), 1)),
        "color": lambda x: ImageEnhance.Color(x).enhance(factor),
        "contrast": lambda x: ImageEnhance.Contrast(x).enhance(factor),
        "brightness": lambda x: ImageEnhance.Brightness(x).enhance(factor),
        "sharpness": lambda x: ImageEnhance.Sharpness(x).enhance(factor),
    }[name](to_pillow(image))


def test_each_of_the_fourteen_ops_matches_pillow():
    image = make_image()
    images = np.broadcast_to(image, (28, *image.shape))
    for result, op, sign in zip(apply_paper_op(images, *EVERY_OP), *EVERY_OP, strict=True):
        expected = np.asarray(expected_op(OPS[op], image, sign, 9), np.int32)
        close = (np.abs(np.asarray(result, np.int32) - expected) <= 1).all(-1)
        # A few pixels of a warp are halfway between two source pixels.
        assert close.mean() >= (0.97 if OPS[op] in WARPS else 1), OPS[op]


@pytest.mark.slow
def test_largest_magnitudes_saturate():
    image = make_image()

    def run(name, sign):
        argument = paper_argument(OPS.index(name), 30, sign, image.shape)
        return COLOR_OPS[name](jnp.asarray(image), argument)

    np.testing.assert_array_equal(run("solarize", 1.0), 255 - image)
    np.testing.assert_array_equal(run("posterize", 1.0), image // 128 * 128)
    expected = np.asarray(enhance(color.brightness, 0.1, to_pillow(image)), np.int32)
    result = np.asarray(run("brightness", -1.0), np.int32)
    assert np.abs(result - expected).max() <= 1


@pytest.mark.slow
def test_sample_op_is_uniform_over_ops_and_signs():
    n = 5000
    samples = jax.vmap(partial(sample_op, count=14))(jax.random.split(jax.random.key(0), n))
    counts = Counter(zip(*map(np.ndarray.tolist, map(np.asarray, samples)), strict=True))
    assert set(counts) == set(zip(*map(np.ndarray.tolist, EVERY_OP), strict=True))
    assert all(abs(count - n / 28) < 5 * np.sqrt(n / 28) for count in counts.values())


@pytest.mark.slow
def test_rand_augment_applies_sampled_ops_in_sequence():
    images, keys = (
        np.stack([make_image(seed=i) for i in range(28)]),
        jax.random.split(jax.random.key(0), 28),
    )
    result = jax.jit(jax.vmap(partial(rand_augment, layers=2, magnitude=9)))(keys, images)
    for layer in jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0):
        images = apply_paper_op(images, *jax.vmap(partial(sample_op, count=14))(layer))
    np.testing.assert_array_equal(result, images)


@pytest.mark.slow
def test_apply_jitter_applies_changes_in_the_given_order():
    image, names = make_image(), tuple(JITTERS)
    amounts = np.array([0.7, 1.4, 0.5, 0.2], np.float32)
    run = jax.jit(apply_jitter, static_argnums=3)
    result = run(jnp.asarray(image), jnp.asarray([2, 0, 3, 1]), jnp.asarray(amounts), names)
    x = enhance(color.brightness, 0.7, enhance(color.saturation, 0.5, to_pillow(image)))
    x = np.asarray(color.hue(jnp.asarray(np.asarray(x)), jnp.float32(0.2)))
    expected = np.asarray(enhance(color.contrast, 1.4, to_pillow(x)), np.int32)
    assert np.abs(np.asarray(result, np.int32) - expected).max() <= 3  # at most one per change


def test_color_jitter_factor_is_uniform_within_its_width():
    n, image = 2000, jnp.full((1, 1, 3), 100, jnp.uint8)
    for width, low, high in [(0.4, 60, 140), (1.5, 0, 250)]:
        run = jax.vmap(lambda key, w=width: color_jitter(key, image, widths=(w, 0, 0, 0)))
        values = np.sort(
            np.asarray(jax.jit(run)(jax.random.split(jax.random.key(0), n)))[:, 0, 0, 0]
        )
        values = (values + 0.5 - low) / (high - low)
        distance = np.abs(values - (np.arange(n) + 0.5) / n).max()
        assert distance < 2.2 / np.sqrt(n) + 1 / (high - low)


@pytest.mark.slow
def test_color_jitter_keeps_hue_and_saturation_of_gray_images():
    gray = jnp.asarray(make_image(1))
    key = jax.random.key(0)
    np.testing.assert_array_equal(color_jitter(key, gray, widths=(0, 0, 0.9, 0.5)), gray)
    assert (color_jitter(key, gray, widths=(0.9, 0, 0, 0)) != gray).any()
