"""Tones, warps, RandAugment and colour jitter against Pillow's own and Python's `colorsys`."""

import colorsys
import itertools
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from resflax.data.augment import color as tone
from resflax.data.augment.affine import WARPS, matrix_of, warp
from resflax.data.augment.jitter import JITTERS, color_jitter, jitter
from resflax.data.augment.rand import OPS, draw_op, rand_augment, rand_op
from resflax.data.augment.rand import TONES as RAND_TONES

SIDE = 24  # of fewer than 256 pixels nothing is equalised


def picture(channels=3, seed=0, low=20, high=200):
    """Smooth in one channel, noise in the next; not of all values, so that there is room."""
    rng = np.random.default_rng(seed)
    ramp = np.add.outer(np.arange(SIDE), 5 * np.arange(SIDE))[..., None] + low
    noise = rng.integers(low, high, (SIDE, SIDE, channels))
    return np.where(np.arange(channels) == 0, ramp, noise).astype(np.uint8)


PICTURES = {
    "colours": picture(),
    "grey": picture(1),
    "flat": np.full((SIDE, SIDE, 3), 77, np.uint8),
    "black and white": picture(seed=1) // 128 * 255,
}


def pillow(image):
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


ENHANCED = {
    tone.saturation: ImageEnhance.Color,
    tone.contrast: ImageEnhance.Contrast,
    tone.brightness: ImageEnhance.Brightness,
    tone.sharpness: ImageEnhance.Sharpness,
}


def enhance(ours, factor, image):
    return ENHANCED[ours](image).enhance(factor)


# Of each: ours, Pillow's, and the settings that both are tried with.
TONES = {
    "autocontrast": (lambda image, _: tone.autocontrast(image), ImageOps.autocontrast, [(0,)]),
    "equalize": (lambda image, _: tone.equalize(image), ImageOps.equalize, [(None,)]),
    "solarize": (tone.solarize, ImageOps.solarize, [(0,), (100,), (256,)]),
    "posterize": (tone.posterize, ImageOps.posterize, [(1,), (4,), (8,)]),
} | {
    ours.__name__: (
        ours,
        lambda image, factor, ours=ours: enhance(ours, factor, image),
        [(0.1,), (0.73,), (1.0,), (1.9,)],
    )
    for ours in ENHANCED
}


@pytest.mark.parametrize("name", TONES)
def test_a_tone_is_pillows_to_one_grey_level(name):
    ours, theirs, settings = TONES[name]
    ours = jax.jit(ours, static_argnums=() if ours in ENHANCED else 1)
    for image, setting in itertools.product(PICTURES.values(), settings):
        expected = np.asarray(theirs(pillow(image), *setting), np.int32).reshape(image.shape)
        found = ours(jnp.asarray(image), *setting)
        assert found.dtype == jnp.uint8
        assert np.abs(np.asarray(found, np.int32) - expected).max() <= 1


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.0, 0.25])
def test_hue_turns_the_circle_of_colours(shift):
    image = np.concatenate([picture(), PICTURES["black and white"]])
    found = np.asarray(jax.jit(tone.hue)(jnp.asarray(image), jnp.float32(shift)), np.int32)
    for pixel, seen in zip(image.reshape(-1, 3), found.reshape(-1, 3), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*pixel / 255)
        np.testing.assert_allclose(
            seen, 255 * np.array(colorsys.hsv_to_rgb((h + shift) % 1, s, v)), atol=0.51
        )


def pillows_matrix(name, amount, width, height):
    """From AutoAugment's definitions; `rotate` from Pillow's documentation."""
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


@pytest.mark.parametrize("amount", [-0.9, 0.37])
@pytest.mark.parametrize("name", WARPS)
def test_a_warp_is_pillows_nearest_neighbour(name, amount):
    """Wherever the nearest neighbour is not decided by rounding: Pillow counts in 2^-16 pixels."""
    image = picture()[:, :11]
    height, width, _ = image.shape
    matrix = pillows_matrix(name, amount, width, height)
    grey = (128, 128, 128)
    if name == "rotate":
        theirs = pillow(image).rotate(30 * amount, fillcolor=grey)
    else:
        theirs = pillow(image).transform(
            (width, height), Image.Transform.AFFINE, matrix, fillcolor=grey
        )
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    a, b, c, d, e, f = matrix
    source = np.stack([a * x + b * y + c, d * x + e * y + f])
    sure = (np.abs(source - np.round(source)) > 2e-3).all(0)
    assert sure.mean() > 0.8
    found = jax.jit(warp)(jnp.asarray(image), matrix_of(name, jnp.float32(amount), height, width))
    np.testing.assert_array_equal(np.asarray(found)[sure], np.asarray(theirs)[sure])


RAND_OP = jax.jit(jax.vmap(partial(rand_op, magnitude=9)))
EVERY = np.tile(np.arange(14), 2), np.repeat(np.float32([1, -1]), 14)  # to both sides


def expected_op(name, image, sign, magnitude):
    """What RandAugment's paper and AutoAugment's table mean by a magnitude, with Pillow."""
    strength = magnitude / 10
    if name == "rotate":
        return pillow(image).rotate(30 * sign * strength, fillcolor=(128,) * 3)
    if name in WARPS:
        size = image.shape[1], image.shape[0]
        matrix = pillows_matrix(name, sign * strength, *size)
        fill = (128,) * 3
        return pillow(image).transform(size, Image.Transform.AFFINE, matrix, fillcolor=fill)
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
    }[name](pillow(image))


def test_each_of_the_fourteen_ops_does_by_its_magnitude_what_its_name_says():
    image = picture()
    images = np.broadcast_to(image, (28, *image.shape))
    for seen, number, sign in zip(RAND_OP(images, *EVERY), *EVERY, strict=True):
        expected = np.asarray(expected_op(OPS[number], image, sign, 9), np.int32)
        close = (np.abs(np.asarray(seen, np.int32) - expected) <= 1).all(-1)
        # Of a warp a few pixels lie in the middle between two.
        assert close.mean() >= (0.97 if OPS[number] in WARPS else 1), OPS[number]


def test_magnitudes_beyond_autoaugments_end_where_nothing_is_left_to_change():
    image = picture()
    np.testing.assert_array_equal(RAND_TONES["solarize"](image, 3.0, 1.0), 255 - image)
    np.testing.assert_array_equal(RAND_TONES["posterize"](image, 3.0, 1.0), image // 128 * 128)
    expected = np.asarray(enhance(tone.brightness, 0.1, pillow(image)), np.int32)
    found = np.asarray(RAND_TONES["brightness"](image, 3.0, -1.0), np.int32)
    assert np.abs(found - expected).max() <= 1


def test_every_op_and_side_is_drawn_as_often():
    n = 5000
    needs_rng = jax.vmap(draw_op)(jax.random.split(jax.random.key(0), n))
    seen = Counter(zip(*map(np.ndarray.tolist, map(np.asarray, needs_rng)), strict=True))
    assert set(seen) == set(zip(*map(np.ndarray.tolist, EVERY), strict=True))
    assert all(abs(count - n / 28) < 5 * np.sqrt(n / 28) for count in seen.values())


def test_layers_are_one_drawn_op_after_another():
    images, keys = (
        np.stack([picture(seed=i) for i in range(28)]),
        jax.random.split(jax.random.key(0), 28),
    )
    found = jax.jit(jax.vmap(partial(rand_augment, layers=2, magnitude=9)))(keys, images)
    for layer in jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0):
        images = RAND_OP(images, *jax.vmap(draw_op)(layer))
    np.testing.assert_array_equal(found, images)


def test_a_jitter_is_its_ops_in_their_order():
    image, names = picture(), tuple(JITTERS)
    amounts = np.array([0.7, 1.4, 0.5, 0.2], np.float32)
    run = jax.jit(jitter, static_argnums=3)
    found = run(jnp.asarray(image), jnp.asarray([2, 0, 3, 1]), jnp.asarray(amounts), names)
    x = enhance(tone.brightness, 0.7, enhance(tone.saturation, 0.5, pillow(image)))
    x = np.asarray(tone.hue(jnp.asarray(np.asarray(x)), jnp.float32(0.2)))
    expected = np.asarray(enhance(tone.contrast, 1.4, pillow(x)), np.int32)
    assert np.abs(np.asarray(found, np.int32) - expected).max() <= 3  # one of each op, at most


def test_the_factor_of_a_jitter_is_uniform_within_its_width():
    n, image = 2000, jnp.full((1, 1, 3), 100, jnp.uint8)
    for width, low, high in [(0.4, 60, 140), (1.5, 0, 250)]:
        run = jax.vmap(lambda key, w=width: color_jitter(key, image, widths=(w, 0, 0, 0)))
        seen = np.sort(np.asarray(jax.jit(run)(jax.random.split(jax.random.key(0), n)))[:, 0, 0, 0])
        seen = (seen + 0.5 - low) / (high - low)
        distance = np.abs(seen - (np.arange(n) + 0.5) / n).max()
        assert distance < 2.2 / np.sqrt(n) + 1 / (high - low)


def test_an_image_without_colours_keeps_its_missing_hue_and_saturation():
    grey = jnp.asarray(picture(1))
    key = jax.random.key(0)
    np.testing.assert_array_equal(color_jitter(key, grey, widths=(0, 0, 0.9, 0.5)), grey)
    assert (color_jitter(key, grey, widths=(0.9, 0, 0, 0)) != grey).any()
