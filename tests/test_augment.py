import jax
import jax.numpy as jnp
import numpy as np

from resflax.data import make_augment, normalize
from resflax.data.augment import flip, pad_crop


def test_normalize_is_the_formula():
    x = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 2), np.uint8)
    mean, std = (0.4, 0.5), (0.2, 0.3)
    expected = (x.astype(np.float64) / 255 - mean) / std
    np.testing.assert_allclose(
        normalize(jnp.asarray(x), mean=mean, std=std), expected, rtol=1e-5, atol=1e-6
    )


def test_pad_crop_gives_every_crop_of_the_padded_image_and_no_other():
    image = np.arange(1, 26, dtype=np.uint8).reshape(5, 5, 1)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    crops = {padded[i : i + 5, j : j + 5].tobytes() for i in range(5) for j in range(5)}
    keys = jax.random.split(jax.random.key(0), 1000)
    seen = np.asarray(jax.vmap(lambda key: pad_crop(key, jnp.asarray(image), padding=2))(keys))
    assert {crop.tobytes() for crop in seen} == crops


def test_flip_mirrors_left_to_right_half_of_the_time():
    image = np.arange(12, dtype=np.uint8).reshape(2, 3, 2)
    keys = jax.random.split(jax.random.key(0), 1000)
    seen = np.asarray(jax.vmap(lambda key: flip(key, jnp.asarray(image)))(keys))
    mirrored = (seen == image[:, ::-1]).all((1, 2, 3))
    assert (mirrored | (seen == image).all((1, 2, 3))).all()
    assert abs(mirrored.sum() - 500) < 5 * np.sqrt(250)


def test_an_image_is_treated_alike_whatever_its_neighbours():
    augment = make_augment(padding=2, mirror=True)
    images = jax.random.bits(jax.random.key(1), (8, 6, 6, 3), "uint8")
    keys = jax.random.split(jax.random.key(0), 8)
    whole = augment(keys, images)
    np.testing.assert_array_equal(whole[3:5], augment(keys[3:5], images[3:5]))
    assert whole.dtype == jnp.uint8


def test_nothing_to_do_is_none():
    assert make_augment() is None
