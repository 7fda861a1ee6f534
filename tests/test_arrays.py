"""Datasets of arrays, `npz:PATH`."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import ARRAYS, X, Y, save_arrays

from resflax import UserError
from resflax.data import (
    EvalTransform,
    InMemorySplit,
    StreamingSplit,
    load_dataset,
    normalize,
)
from resflax.data.roles import SplitChoice
from resflax.data.splits import load_split
from resflax.train import default_config
from resflax.train.dataset import normalize_dataset
from resflax.weights import Preprocess, PretrainedConfig
from resflax.weights.array_preprocess import ArrayPreprocess
from resflax.zoo import get_spec


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_x", "train_y", "test_x", "test_y"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("X", "Y", "X_test", "Y_test"),
    ],
)
def test_usual_names_of_arrays_are_found(tmp_path, names):
    dataset = load_dataset(
        save_arrays(tmp_path / "a.npz", **dict(zip(names, ARRAYS.values(), strict=True)))
    )
    np.testing.assert_array_equal(dataset.train.images, X)
    np.testing.assert_array_equal(dataset.test.labels, Y[:6])
    assert (dataset.image_shape, dataset.classes) == ((20, 2), ("0", "1", "2"))


def test_folders_of_npy_files_are_one_dataset(tmp_path):
    for name, array in ARRAYS.items():
        np.save(tmp_path / f"{name}.npy", array)
    assert load_dataset(f"npz:{tmp_path}").fingerprint() == (
        load_dataset(save_arrays(tmp_path / "a.npz", **ARRAYS)).fingerprint()
    )


@pytest.mark.parametrize("splits", [("train", "test"), ("",)])
def test_class_folders_of_npy_files(tmp_path, splits):
    for split in splits:
        for i, (x, y) in enumerate(zip(X, Y, strict=True)):
            path = tmp_path / split / "abc"[y] / f"{i:02}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, x)
    dataset = load_dataset(f"npz:{tmp_path}")
    assert dataset.classes == ("a", "b", "c")
    if "test" in splits:
        np.testing.assert_array_equal(
            dataset.test.images, np.concatenate([X[i::3] for i in range(3)])
        )
    else:  # a tenth of each class is held out
        assert (len(dataset.train), len(dataset.test)) == (9, 3)


def test_validation_arrays_choose_the_checkpoint(tmp_path):
    name = save_arrays(tmp_path / "a.npz", **ARRAYS, val_images=X[6:], val_labels=Y[6:, None])
    dataset = load_dataset(name)
    assert dataset.best_by == "validation"
    np.testing.assert_array_equal(dataset.validation.labels, Y[6:])
    chosen = load_dataset(name, splits=SplitChoice(validation="test", test="val"))
    np.testing.assert_array_equal(chosen.validation.images, X[:6])
    assert len(load_split(name, "val")) == 6


@pytest.mark.parametrize(
    ("array", "shape", "dtype"),
    [
        (np.zeros((12, 9)), (9, 1), np.float32),
        (np.zeros((12, 9), np.int16), (9, 1), np.float32),
        (np.zeros((12, 9, 8), np.uint8), (9, 8, 1), np.uint8),
        (np.zeros((12, 9, 8), np.float64), (9, 8), np.float32),
        (np.zeros((12, 4, 5, 6, 2), np.float16), (4, 5, 6, 2), np.float32),
    ],
)
def test_ranks_and_dtypes_of_arrays(tmp_path, array, shape, dtype):
    split = load_dataset(save_arrays(tmp_path / "a.npz", x=array, y=Y)).train
    assert (split.image_shape, split.images.dtype) == (shape, dtype)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (Y * 2 - 1, ("-1", "1", "3")),
        (Y.astype(np.float32), ("0", "1", "2")),
        (np.array(["b", "a", "c"])[Y], ("a", "b", "c")),
        (Y > 0, ("0", "1")),
    ],
)
def test_labels_are_positions_of_their_sorted_values(tmp_path, labels, classes):
    dataset = load_dataset(save_arrays(tmp_path / "a.npz", x=X, y=labels, x_test=X, y_test=labels))
    assert dataset.classes == classes
    expected = np.unique(labels, return_inverse=True)[1]
    np.testing.assert_array_equal(dataset.train.labels, expected)


def test_runs_say_what_the_arrays_are_taken_for(tmp_path):
    for array, text in (
        (np.zeros((12, 9, 8), np.uint8), "uint8 images of 9x8 and 1 channel, divided by 255"),
        (np.zeros((12, 9, 8)), "float32 signals of 9 steps and 8 channels, not scaled"),
        (np.zeros((12, 4, 5, 6, 2), int), "float32 volumes of 4x5x6 and 2 channels, not scaled"),
    ):
        dataset = load_dataset(save_arrays(tmp_path / "a.npz", x=array, y=Y, ids=Y))
        assert f"{text}; not used: ids" in dataset.describe_splits()


PIXELS = np.arange(12 * 8 * 8).reshape(12, 8, 8, 1) % 256


def pretrained(mean=0.5, **fields):
    """Returns the config of pretrained weights, whose preprocessing is of images or arrays."""
    kind = ArrayPreprocess if fields else Preprocess
    preprocess = kind(size=(8, 8), crop_pct=1.0, mean=(mean,), std=(0.25,), **fields)
    return PretrainedConfig(get_spec("cifar_resnet8"), 1, preprocess, ())


def test_pretrained_mean_and_std_need_values_of_their_scale(tmp_path):
    config = default_config()

    def mean_of(array, weights):
        dataset = load_dataset(save_arrays(tmp_path / "a.npz", x=array, y=Y))
        return normalize_dataset(dataset, config, weights).train.mean_std()[0]

    floats = pretrained(mean=100.0, space=(8, 8))
    assert mean_of(PIXELS.astype(np.uint8), pretrained()) == (0.5,)
    assert mean_of(PIXELS / 255, pretrained()) == (0.5,)
    assert mean_of(PIXELS, floats) == (100.0,)
    for array, weights, message in (
        (PIXELS, pretrained(), "float32 values from 0 to 255, but the mean and std of the pre"),
        (PIXELS / 255 - 0.5, pretrained(space=(8, 8), dtype="uint8"), "values from -0.5 to 0.5"),
        (PIXELS.astype(np.uint8), floats, "uint8 values, but the mean and std"),
    ):
        with pytest.raises(UserError, match=message):
            mean_of(array, weights)
    config.data.mean, config.data.std = (127.0,), (64.0,)
    assert mean_of(PIXELS, pretrained()) == (127.0,)


def test_networks_of_images_are_not_evaluated_on_floats(tmp_path):
    name = save_arrays(tmp_path / "a.npz", x=PIXELS / 255, y=Y)
    split = StreamingSplit(
        load_split(name, "train"), 8, 1, eval_transform=EvalTransform(size=(8, 8))
    )
    with pytest.raises(UserError, match="has float32 arrays .* expected uint8 images"):
        split.get_batch(np.arange(2))


def test_class_names_come_with_the_arrays(tmp_path):
    dataset = load_dataset(
        save_arrays(tmp_path / "a.npz", **ARRAYS, classes=np.array(["n", "a", "v"]))
    )
    assert dataset.classes == ("n", "a", "v")
    np.testing.assert_array_equal(dataset.train.labels, Y)


def with_nan():
    x = X.copy()
    x[5, 3] = np.nan
    return x


BAD_ARRAYS = {
    "no labels": ({"x_train": X}, "no labels of the train split: expected y_train as well"),
    "no values": ({**ARRAYS, "y_val": Y}, "no values of the val split: expected x_val as well"),
    "unknown names": ({"a": X, "b": Y}, "has a, b: expected x_train, y_train, x_test and y_test"),
    "two names": ({**ARRAYS, "train_images": X}, "could both be the values of the train split"),
    "no training split": ({"x_test": X, "y_test": Y}, "no training split"),
    "lengths": ({**ARRAYS, "y_train": Y[:9]}, "x_train has 12 examples and y_train has 9 labels"),
    "NaN": ({**ARRAYS, "x_train": with_nan()}, "infinite values in 1 of 12 examples, first in ex"),
    "overflow": ({**ARRAYS, "x_train": X.astype(float) * 1e300}, "NaN or infinite values"),
    "text": ({**ARRAYS, "x_train": X.astype(str)}, "expected integers or floats"),
    "complex": ({**ARRAYS, "x_train": X + 1j}, "has the dtype complex64"),
    "rank 1": ({**ARRAYS, "x_train": X[:, 0, 0]}, "has the shape (12,): expected signals"),
    "empty": ({**ARRAYS, "x_train": X[:0]}, "has the shape (0, 20, 2)"),
    "one-hot": ({**ARRAYS, "y_train": np.eye(3)[Y]}, ".argmax(1)"),
    "fractions": ({**ARRAYS, "y_train": Y / 2}, "expected integers or text"),
    "dtypes": (
        {**ARRAYS, "x_test": X[:6].astype(np.uint8)[..., None]},
        "the split train is float32 and the split test is uint8, but only uint8 values are divided",
    ),
    "shapes": ({**ARRAYS, "x_test": X[:6, :9]}, "expected one shape"),
    "unknown class": ({**ARRAYS, "y_test": Y[:6] + 1}, "has the label 3, which no training"),
    "one class": ({**ARRAYS, "y_train": Y * 0, "y_test": Y[:6] * 0}, "12 examples have the class"),
    "few names": ({**ARRAYS, "classes": np.array(["a"])}, "train has the label 1 and there are 1"),
    "negative label": (
        {**ARRAYS, "y_train": Y - 1, "classes": np.array(["a", "b", "c"])},
        "train has the label -1 and there are 3 class names: expected labels from 0 to 2",
    ),
    "large test label": (
        {**ARRAYS, "y_test": Y[:6] + 5, "classes": np.array(["a", "b", "c"])},
        "test has the label 5 and there are 3 class names",
    ),
    "equal names": ({**ARRAYS, "classes": np.array(["a", "b", "a"])}, "have the same name"),
    "not a class": (
        {**ARRAYS, "y_train": np.array(["a", "z"] * 6), "classes": np.array(["a", "b"])},
        "train has the label z, which is not a class: expected one of a, b",
    ),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_are_refused_in_one_line(tmp_path, case):
    arrays, message = BAD_ARRAYS[case]
    with pytest.raises(UserError) as error:
        load_dataset(save_arrays(tmp_path / "a.npz", **arrays))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_files_are_refused_in_one_line(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.savez(tmp_path / "objects.npz", x_train=np.array([{}], object), y_train=Y)
    (tmp_path / "text.npz").write_text("a,b")
    (tmp_path / "whole.npz").write_bytes(b"PK\3\4" + bytes(100))
    (tmp_path / "empty").mkdir()
    for name, message in {
        "objects.npz": "the array 'x_train' in",
        "text.npz": "cannot read",
        "whole.npz": "cannot read",
        "missing.npz": "does not exist",
        "objects.npy": "is not an .npz file or a folder",
        "empty": "has no .npy files in class folders",
        "": "which are not read since they can run code",
    }.items():
        with pytest.raises(UserError) as error:
            load_dataset(f"npz:{tmp_path / name}")
        assert message in str(error.value), name
        assert "\n" not in str(error.value)


def test_damaged_files_are_refused_in_one_line(tmp_path):
    path = Path(save_arrays(tmp_path / "a.npz", **ARRAYS).removeprefix("npz:"))
    np.savez_compressed(path, **ARRAYS)
    content = path.read_bytes()
    messages = set()
    for i in range(40, len(content) - 4, len(content) // 40):
        path.write_bytes(content[:i] + b"\x93\xff\x00\x7f" + content[i + 4 :])
        try:
            load_dataset(f"npz:{path}")
        except UserError as error:
            messages.add(str(error))
    assert len(messages) > 1
    assert not any("\n" in message for message in messages)


def test_floats_are_normalized_as_they_are():
    split = InMemorySplit(X, Y.astype(np.int32))
    mean, std = split.mean_std()
    np.testing.assert_allclose(mean, X.mean((0, 1)), atol=1e-6)
    normalized = np.asarray(normalize(jnp.asarray(X), mean=mean, std=std))
    np.testing.assert_allclose(normalized.mean((0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(normalized.std((0, 1)), 1, atol=1e-5)
