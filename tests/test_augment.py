"""Places and the road: crops, flips, what settings there are, and that streams are apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resflax import UserError
from resflax.data import flip_parity, make_augment, normalize
from resflax.data.augment import flip, pad_crop
from resflax.data.augment.crop_flip import crop_at
from resflax.data.augment.pipeline import TRANSFORMS

ON = {
    "pad_crop": 2,
    "inception_crop": True,
    "flip": "alternating",
    "rand_augment": (2, 9),
    "color_jitter": (0.4, 0.4, 0.4, 0.1),
    "random_erasing": 0.5,
    "cutout": 3,
}


def images_of(n, side=6, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, channels), np.uint8)


def keys_of(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def test_normalize_is_the_formula():
    x = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 2), np.uint8)
    mean, std = (0.4, 0.5), (0.2, 0.3)
    expected = (x.astype(np.float64) / 255 - mean) / std
    np.testing.assert_allclose(
        normalize(jnp.asarray(x), mean=mean, std=std), expected, rtol=1e-5, atol=1e-6
    )


def test_a_crop_is_a_slice_of_the_padded_image():
    image = images_of(1)[0]
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    for i, j in [(0, 0), (4, 1), (2, 2)]:
        found = crop_at(jnp.asarray(image), jnp.int32(i), jnp.int32(j), padding=2)
        np.testing.assert_array_equal(found, padded[i : i + 6, j : j + 6])


def test_pad_crop_gives_every_crop_of_the_padded_image_and_no_other():
    image = np.arange(1, 26, dtype=np.uint8).reshape(5, 5, 1)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    crops = {padded[i : i + 5, j : j + 5].tobytes() for i in range(5) for j in range(5)}
    seen = jax.vmap(lambda key: pad_crop(key, jnp.asarray(image), padding=2))(keys_of(1000))
    assert {crop.tobytes() for crop in np.asarray(seen)} == crops


def test_flip_mirrors_left_to_right_half_of_the_time():
    image = np.arange(12, dtype=np.uint8).reshape(2, 3, 2)
    seen = np.asarray(jax.vmap(lambda key: flip(key, jnp.asarray(image)))(keys_of(1000)))
    mirrored = (seen == image[:, ::-1]).all((1, 2, 3))
    assert (mirrored | (seen == image).all((1, 2, 3))).all()
    assert abs(mirrored.sum() - 500) < 5 * np.sqrt(250)


def test_the_alternating_flip_shows_both_sides_in_two_epochs_and_begins_with_a_coin():
    n, augment = 1000, jax.jit(make_augment(flip="alternating"))
    images = np.broadcast_to(np.arange(6, dtype=np.uint8).reshape(1, 2, 3, 1), (n, 2, 3, 1))
    index = jnp.arange(n)
    mirrored = []
    for epoch in range(4):
        # Other keys in each epoch, as steps have: the flip must not go by them.
        seen = augment(
            keys_of(n, epoch), images, flip_parity(jnp.uint32(7), index, jnp.int32(epoch))
        )
        mirrored.append((np.asarray(seen) == images[:, :, ::-1]).all((1, 2, 3)))
        assert (mirrored[-1] | (np.asarray(seen) == images).all((1, 2, 3))).all()
    first = mirrored[0]
    np.testing.assert_array_equal(mirrored, [first, ~first, first, ~first])
    assert abs(first.sum() - n / 2) < 5 * np.sqrt(n / 4)
    assert abs((first[1:] == first[:-1]).sum() - n / 2) < 5 * np.sqrt(n / 4)
    other = np.asarray(flip_parity(jnp.uint32(8), index, jnp.int32(0))) == 1
    assert abs((first == other).sum() - n / 2) < 5 * np.sqrt(n / 4)


def test_a_turn_is_of_the_example_and_of_its_own_epoch():
    """A batch may end one epoch and begin the next."""
    whole = flip_parity(jnp.uint32(0), jnp.arange(6), jnp.asarray([0, 0, 0, 1, 1, 1]))
    part = flip_parity(jnp.uint32(0), jnp.arange(2, 5), jnp.asarray([0, 1, 1]))
    np.testing.assert_array_equal(whole[2:5], part)
    assert whole.dtype == jnp.int32


def test_the_alternating_flip_without_turns_is_refused():
    with pytest.raises(ValueError, match="the alternating flip goes by the epoch"):
        make_augment(flip="alternating")(keys_of(2), images_of(2))


@pytest.fixture(scope="module")
def everything():
    return jax.jit(make_augment(**ON))


def test_an_image_is_treated_alike_whatever_its_neighbours(everything):
    images, keys, turn = images_of(8), keys_of(8), jnp.arange(8)
    whole = everything(keys, images, turn)
    part = everything(jnp.roll(keys, 3), np.roll(images, 3, 0), jnp.roll(turn, 3))
    np.testing.assert_array_equal(whole, np.roll(part, -3, 0))
    assert whole.dtype == jnp.uint8
    assert (np.asarray(whole) != images).any((1, 2, 3)).all()


def test_crop_and_flip_draw_from_the_halves_of_the_key():
    """What runs of before this road saw: their records stay true."""
    images, keys = images_of(8), keys_of(8)

    def one(key, image):
        first, second = jax.random.split(key)
        return flip(second, pad_crop(first, image, padding=2))

    expected = jax.vmap(one)(keys, jnp.asarray(images))
    for fields in ({"pad_crop": 2, "flip": True}, {"padding": 2, "mirror": True}):
        np.testing.assert_array_equal(make_augment(**fields)(keys, images), expected)


def test_no_setting_changes_what_another_one_draws():
    assert len({row.stream for row in TRANSFORMS.values()}) == len(TRANSFORMS)
    images, keys = images_of(8, side=12), keys_of(8)
    both = make_augment(pad_crop=2, cutout=3)(keys, images)
    cropped = make_augment(pad_crop=2)(keys, images)
    np.testing.assert_array_equal(both, make_augment(cutout=3)(keys, cropped))


def test_nothing_to_do_is_none():
    assert make_augment() is None
    assert make_augment(flip=False, rand_augment=[], color_jitter=(0, 0.0, 0, 0)) is None


def test_every_row_is_a_setting():
    for name, value in ON.items():
        assert make_augment(**{name: value}) is not None
    assert set(ON) == set(TRANSFORMS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pad_crop": -1}, "pad_crop is -1: expected a number of pixels, 0 for none"),
        ({"pad_crop": 1.5}, "pad_crop is 1.5: expected a number of pixels"),
        ({"flip": "both"}, "flip is 'both': expected one of none, random, alternating"),
        ({"inception_crop": 1}, "inception_crop is 1: expected True or False"),
        ({"cutout": True}, "cutout is True: expected a number of pixels"),
        ({"random_erasing": 1.5}, "random_erasing is 1.5: expected a probability"),
        ({"random_erasing": float("nan")}, "random_erasing is nan: expected a probability"),
        ({"rand_augment": (0, 9)}, r"rand_augment is \(0, 9\): expected layers"),
        ({"rand_augment": (2,)}, r"rand_augment is \(2,\): expected layers"),
        ({"rand_augment": 2}, "rand_augment is 2: expected layers"),
        ({"rand_augment": (2, 31)}, "magnitude"),
        ({"color_jitter": (0.4, 0.4, 0.4)}, "color_jitter is .*: expected widths of brightness"),
        ({"color_jitter": (0.4, 0.4, 0.4, 0.6)}, "hue .0 to 0.5."),
    ],
)
def test_a_value_that_cannot_be_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        make_augment(**fields)
