"""Crops, flips, the settings of `make_augment`, and the independence of its random streams."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resflax import UserError
from resflax.data import flip_parity, make_augment, normalize
from resflax.data.augment import TRANSFORMS, check_augment, flip, pad_crop
from resflax.data.augment.crop_flip import crop_at

ENABLED = {
    "pad_crop": 2,
    "inception_crop": (0.08, 1.0, 3 / 4, 4 / 3),
    "flip": "alternating",
    "rand_augment": (2, 9),
    "auto_augment": "trivial",
    "color_jitter": (0.4, 0.4, 0.4, 0.1),
    "grayscale": 0.5,
    "gaussian_blur": 0.5,
    "solarize": 0.5,
    "random_erasing": 0.5,
    "cutout": 3,
    "shift": 2,
    "noise": 0.5,
    "mask": 3,
}


def random_images(n, side=6, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, channels), np.uint8)


def split_keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def test_normalize_subtracts_mean_and_divides_by_std():
    x = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 2), np.uint8)
    mean, std = (0.4, 0.5), (0.2, 0.3)
    expected = (x.astype(np.float64) / 255 - mean) / std
    np.testing.assert_allclose(
        normalize(jnp.asarray(x), mean=mean, std=std), expected, rtol=1e-5, atol=1e-6
    )


def test_crop_at_is_a_slice_of_the_padded_image():
    image = random_images(1)[0]
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    for i, j in [(0, 0), (4, 1), (2, 2)]:
        cropped = crop_at(jnp.asarray(image), jnp.int32(i), jnp.int32(j), padding=2)
        np.testing.assert_array_equal(cropped, padded[i : i + 6, j : j + 6])


@pytest.mark.slow
def test_pad_crop_gives_exactly_the_crops_of_the_padded_image():
    image = np.arange(1, 26, dtype=np.uint8).reshape(5, 5, 1)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    crops = {padded[i : i + 5, j : j + 5].tobytes() for i in range(5) for j in range(5)}
    sampled = jax.vmap(lambda key: pad_crop(key, jnp.asarray(image), padding=2))(split_keys(1000))
    assert {crop.tobytes() for crop in np.asarray(sampled)} == crops


def test_flip_mirrors_left_to_right_half_of_the_time():
    image = np.arange(12, dtype=np.uint8).reshape(2, 3, 2)
    results = np.asarray(jax.vmap(lambda key: flip(key, jnp.asarray(image)))(split_keys(1000)))
    flipped = (results == image[:, ::-1]).all((1, 2, 3))
    assert (flipped | (results == image).all((1, 2, 3))).all()
    assert abs(flipped.sum() - 500) < 5 * np.sqrt(250)


def test_alternating_flip_starts_at_random_and_alternates():
    n, augment = 1000, jax.jit(make_augment(flip="alternating"))
    images = np.broadcast_to(np.arange(6, dtype=np.uint8).reshape(1, 2, 3, 1), (n, 2, 3, 1))
    index = jnp.arange(n)
    flipped = []
    for epoch in range(4):
        # Other keys in each epoch, as in other steps: the flip must not depend on them.
        parity = flip_parity(jnp.uint32(7), index, jnp.int32(epoch))
        results = np.asarray(augment(split_keys(n, epoch), images, parity))
        flipped.append((results == images[:, :, ::-1]).all((1, 2, 3)))
        assert (flipped[-1] | (results == images).all((1, 2, 3))).all()
    first = flipped[0]
    np.testing.assert_array_equal(flipped, [first, ~first, first, ~first])
    assert abs(first.sum() - n / 2) < 5 * np.sqrt(n / 4)
    assert abs((first[1:] == first[:-1]).sum() - n / 2) < 5 * np.sqrt(n / 4)
    other_seed = np.asarray(flip_parity(jnp.uint32(8), index, jnp.int32(0))) == 1
    assert abs((first == other_seed).sum() - n / 2) < 5 * np.sqrt(n / 4)


@pytest.mark.slow
def test_flip_parity_uses_the_epoch_of_each_example():
    """A batch may cross an epoch boundary."""
    whole = flip_parity(jnp.uint32(0), jnp.arange(6), jnp.asarray([0, 0, 0, 1, 1, 1]))
    part = flip_parity(jnp.uint32(0), jnp.arange(2, 5), jnp.asarray([0, 1, 1]))
    np.testing.assert_array_equal(whole[2:5], part)
    assert whole.dtype == jnp.int32


def test_alternating_flip_without_parity_raises():
    with pytest.raises(ValueError, match="the alternating flip needs `parity`"):
        make_augment(flip="alternating")(split_keys(2), random_images(2))


@pytest.fixture(scope="module")
def augment_with_everything():
    return jax.jit(make_augment(**ENABLED))


@pytest.mark.slow
def test_augmented_image_does_not_depend_on_the_batch(augment_with_everything):
    images, keys, parity = random_images(8), split_keys(8), jnp.arange(8)
    whole = augment_with_everything(keys, images, parity)
    rolled = augment_with_everything(jnp.roll(keys, 3), np.roll(images, 3, 0), jnp.roll(parity, 3))
    np.testing.assert_array_equal(whole, np.roll(rolled, -3, 0))
    assert whole.dtype == jnp.uint8
    assert (np.asarray(whole) != images).any((1, 2, 3)).all()


@pytest.mark.slow
def test_crop_and_flip_use_the_two_halves_of_the_key():
    """Recorded results of earlier versions depend on these streams."""
    images, keys = random_images(8), split_keys(8)

    def crop_then_flip(key, image):
        first, second = jax.random.split(key)
        return flip(second, pad_crop(first, image, padding=2))

    expected = jax.vmap(crop_then_flip)(keys, jnp.asarray(images))
    augment = make_augment(pad_crop=2, flip="random")
    np.testing.assert_array_equal(augment(keys, images), expected)


@pytest.mark.slow
def test_settings_do_not_change_the_draws_of_others():
    assert len({transform.stream for transform in TRANSFORMS.values()}) == len(TRANSFORMS)
    images, keys = random_images(8, side=12), split_keys(8)
    both = make_augment(pad_crop=2, cutout=3)(keys, images)
    cropped = make_augment(pad_crop=2)(keys, images)
    np.testing.assert_array_equal(both, make_augment(cutout=3)(keys, cropped))


def test_make_augment_with_everything_disabled_is_none():
    assert make_augment() is None
    assert make_augment(flip="none", rand_augment=[], color_jitter=(0, 0.0, 0, 0)) is None


def test_transforms_are_the_settings_of_make_augment():
    for name, value in ENABLED.items():
        assert make_augment(**{name: value}) is not None
    assert set(ENABLED) == set(TRANSFORMS)


@pytest.mark.parametrize("function", [check_augment, make_augment])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pad_crop": -1}, "pad_crop is -1: expected a number of pixels, 0 to disable"),
        ({"pad_crop": 1.5}, "pad_crop is 1.5: expected a number of pixels"),
        ({"flip": "both"}, "flip is 'both': expected one of none, random, alternating"),
        ({"flip": True}, "flip is True: expected one of none, random, alternating"),
        ({"inception_crop": (1, 0.5, 1, 1)}, r"inception_crop is \(1, 0.5, 1, 1\): expected small"),
        ({"inception_crop": (0, 1, 1, 1)}, r"inception_crop is \(0, 1, 1, 1\): expected smallest"),
        ({"cutout": True}, "cutout is True: expected a number of pixels"),
        ({"random_erasing": 1.5}, "random_erasing is 1.5: expected a probability"),
        ({"random_erasing": float("nan")}, "random_erasing is nan: expected a probability"),
        ({"rand_augment": (0, 9)}, r"rand_augment is \(0, 9\): expected layers"),
        ({"rand_augment": (2,)}, r"rand_augment is \(2,\): expected layers"),
        ({"rand_augment": 2}, "rand_augment is 2: expected layers"),
        ({"rand_augment": (2, 31)}, "magnitude"),
        ({"auto_augment": "rand-q"}, "auto_augment is 'rand-q', where 'q' is not valid"),
        ({"auto_augment": 3}, "auto_augment is 3: expected '' or a policy such as rand-m9"),
        ({"gaussian_blur": 2}, "gaussian_blur is 2: expected a probability"),
        ({"color_jitter": (0.4, 0.4, 0.4)}, "color_jitter is .*: expected widths of brightness"),
        ({"color_jitter": (0.4, 0.4, 0.4, 0.6)}, "hue .0 to 0.5."),
    ],
)
def test_invalid_settings_raise(function, settings, message):
    with pytest.raises(UserError, match=message):
        function(**settings)
