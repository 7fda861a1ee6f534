"""Crops of training images: `data.train_crop`, `data.crop_scale` and `data.crop_ratio`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.image_folders import write_folder
from PIL import Image

from resflax import UserError
from resflax.data import EvalTransform
from resflax.data.augment import inception_crop
from resflax.data.crops import TrainCrop, inception_box
from resflax.train import check_config, default_config
from resflax.train.config import build_augment
from resflax.train.dataset import build_dataset

NOISE = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)
BILINEAR = Image.Resampling.BILINEAR


@pytest.fixture
def folder(tmp_path):
    files = {f"{split}/{c}/1.png": NOISE for split in ("train", "test") for c in "ab"}
    return write_folder(tmp_path, files)


def make_config(folder="folder:unread", image_size=8, **keys):
    config = default_config()
    config.dataset = folder
    config.data.image_size = image_size
    config.update_from_flattened_dict({f"data.{key}": value for key, value in keys.items()})
    check_config(config)
    return config


def resized(width, height, resample=BILINEAR):
    return np.asarray(Image.fromarray(NOISE).resize((width, height), resample))


def windows(image, side):
    height, width = image.shape[:2]
    return {
        image[top : top + side, left : left + side].tobytes()
        for top in range(height - side + 1)
        for left in range(width - side + 1)
    }


def test_resize_crops_windows_of_the_resized_image(folder):
    split = build_dataset(make_config(folder, train_crop="resize", crop_pct=0.8)).train
    # The shorter side of 30 pixels becomes 8 / 0.8 = 10, the longer one 50 / 3.
    expected = windows(resized(16, 10), 8)
    seen = {split.get_batch(np.array([0]), step)[0][0].tobytes() for step in range(200)}
    assert seen == expected


def test_squash_resizes_both_sides_in_training_and_evaluation(folder):
    dataset = build_dataset(make_config(folder, train_crop="squash", interpolation="bicubic"))
    expected = resized(8, 8, Image.Resampling.BICUBIC)
    for split in (dataset.train, dataset.test):
        np.testing.assert_array_equal(split.get_batch(np.array([1]))[0][0], expected)


def test_none_crops_training_images_as_for_evaluation(folder):
    dataset = build_dataset(make_config(folder, train_crop="none", crop_pct=0.5, eval_size=12))
    transform = EvalTransform(size=(8, 8), crop_pct=0.5)
    assert dataset.test.image_shape == (12, 12, 3)
    images, _ = dataset.train.get_batch(np.array([0]), 5)
    np.testing.assert_array_equal(images[0], transform.apply(NOISE))


@pytest.mark.parametrize(
    ("keys", "crop_mode", "crop_pct"),
    [
        ({}, "center", 0.875),
        ({"crop_mode": "squash"}, "squash", 1.0),
        ({"crop_mode": "squash", "crop_pct": 0.9}, "squash", 0.9),
        ({"train_crop": "squash"}, "squash", 1.0),
        ({"train_crop": "squash", "crop_mode": "center"}, "center", 0.875),
    ],
    ids=str,
)
def test_evaluation_squashes_if_training_does(folder, keys, crop_mode, crop_pct):
    transform = build_dataset(make_config(folder, **keys)).test.transform
    assert (transform.crop_mode, transform.crop_pct) == (crop_mode, crop_pct)


@pytest.mark.parametrize("kind", ["auto", "inception"])
def test_inception_crops_have_the_scale_and_ratio_of_the_config(folder, kind):
    keys = {"crop_scale": (0.2, 0.3), "crop_ratio": (2.0, 2.5)}
    split = build_dataset(make_config(folder, train_crop=kind, **keys)).train
    assert split.crop == TrainCrop("inception", (0.2, 0.3), (2.0, 2.5))
    boxes = [inception_box(np.random.default_rng(i), 300, 400, (0.2, 0.3), (2.0, 2.5))
             for i in range(300)]  # fmt: skip
    for left, top, right, bottom in boxes:
        width, height = right - left, bottom - top
        assert 0.198 < width * height / (300 * 400) < 0.302
        assert 1.98 < width / height < 2.53
    box = inception_box(np.random.default_rng([0, 4, 1]), 30, 50, (0.2, 0.3), (2.0, 2.5))
    expected = Image.fromarray(NOISE).resize((8, 8), BILINEAR, box=box)
    np.testing.assert_array_equal(split.get_batch(np.array([1]), 4)[0][0], expected)


def test_random_interpolation_is_bilinear_or_bicubic(folder):
    split = build_dataset(make_config(folder, train_interpolation="random")).train
    counts = [0, 0]
    for step in range(80):
        box = inception_box(np.random.default_rng([0, step, 1]), 30, 50)
        image = split.get_batch(np.array([1]), step)[0][0]
        kinds = (BILINEAR, Image.Resampling.BICUBIC)
        expected = [np.asarray(Image.fromarray(NOISE).resize((8, 8), k, box=box)) for k in kinds]
        (kind,) = {k for k in range(2) if (image == expected[k]).all()}
        counts[kind] += 1
    assert abs(counts[0] - 40) < 4.5 * np.sqrt(20)


def test_train_interpolation_leaves_that_of_evaluation(folder):
    keys = {"train_crop": "squash", "train_interpolation": "nearest", "interpolation": "bicubic"}
    dataset = build_dataset(make_config(folder, **keys))
    for split, kind in [(dataset.train, "NEAREST"), (dataset.test, "BICUBIC")]:
        expected = resized(8, 8, Image.Resampling[kind])
        np.testing.assert_array_equal(split.get_batch(np.array([1]))[0][0], expected)


def test_inception_crops_on_the_device_have_the_scale_and_ratio():
    ramp = np.arange(48, dtype=np.float32)
    image = jnp.asarray(np.stack(np.meshgrid(ramp, ramp, indexing="ij"), -1))
    keys = jax.random.split(jax.random.key(0), 200)
    crop = jax.jit(
        jax.vmap(lambda key: inception_crop(key, image, area=(0.2, 0.4), ratio=(1.5, 2.0)))
    )
    results = np.asarray(crop(keys))
    # The first and last output pixels are corners of the box.
    height = results[:, -1, 0, 0] - results[:, 0, 0, 0] + 1
    width = results[:, 0, -1, 1] - results[:, 0, 0, 1] + 1
    area = height * width / 48**2
    assert 0.19 < area.min() < 0.25
    assert 0.35 < area.max() < 0.41
    assert (width / height).min() > 1.4
    assert (width / height).max() < 2.1


def test_inception_crops_in_memory_run_on_the_device():
    assert build_augment(make_config(image_size=0)) is None
    assert build_augment(make_config(image_size=0, train_crop="none")) is None
    assert build_augment(make_config(image_size=0, train_crop="inception")) is not None
    assert build_augment(make_config(image_size=32, train_crop="inception")) is None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"train_crop": "random"}, "unknown data.train_crop 'random'"),
        ({"train_crop": "squash", "image_size": 0}, "train_crop is 'squash', but .* not resized"),
        ({"train_crop": "resize", "image_size": 0}, "train_crop is 'resize', but .* not resized"),
        ({"crop_scale": (0.5, 0.2)}, "crop_scale is .0.5, 0.2.: expected smallest and largest"),
        ({"crop_scale": (0.5,)}, "crop_scale is .0.5,.: expected smallest and largest share"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale is .0.0, 1.0.: expected .* above 0, up to 1"),
        ({"crop_ratio": (0, 1)}, "crop_ratio is .0, 1.: expected smallest and largest ratio"),
        ({"crop_mode": "stretch"}, "crop_mode is 'stretch': expected '', center, squash"),
    ],
    ids=str,
)
def test_invalid_crops_are_refused(keys, message):
    with pytest.raises(UserError, match=message):
        make_config(**keys)
