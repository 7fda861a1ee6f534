"""Which examples train, validate and test: found by name, chosen, and held out."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from helpers.image_folders import constant_image, encode_png, prepare_stripes, write_folder

from resflax import UserError
from resflax.data import load_dataset, load_split
from resflax.data.location import FeatureKeys
from resflax.data.roles import SplitChoice


def values(split):
    """Returns the pixel values of constant images, which tell the examples apart."""
    images, _ = split.get_batch(np.arange(len(split)))
    return images[:, 0, 0, 0].tolist()


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    """Prepared datasets with 60 images, and 20 more in each other split."""
    root = tmp_path_factory.mktemp("tfds")

    def prepare(*names):
        folder = root / "-".join(names)
        if not folder.exists():
            counts = {name: 60 if name == "train" else 20 for name in names}
            prepare_stripes(folder, counts=counts)
        return str(folder)

    return prepare


def splits_of(data_dir, **options):
    """Returns the number of examples of each split, and the names of the splits."""
    dataset = load_dataset("stripes", data_dir, **options)
    return {name: len(split) for name, split in dataset.splits.items()}, dataset.names


THREE = ("train", "validation", "test")
# Splits that exist, what the user says, and the names of what is used.
CHOICES = {
    "test": (("train", "test"), {}, ("train", "", "test")),
    "validation alone": (("train", "validation"), {}, ("train", "", "validation")),
    "validation and test": (THREE, {}, THREE),
    "any case": (("train", "valid", "testing"), {}, ("train", "valid", "testing")),
    "held out": (
        ("train", "test"),
        {"held_out": 0.2},
        ("train, without held-out 0.2", "train, held-out 0.2", "test"),
    ),
    "held out and validation": (
        ("train", "validation"),
        {"held_out": 0.2},
        ("train, without held-out 0.2", "train, held-out 0.2", "validation"),
    ),
    "only train": (("train",), {}, ("train, without held-out 0.1", "", "train, held-out 0.1")),
    "expressions": (
        ("train",),
        {"train": "train[:80%]", "validation": "train[80%:90%]", "test": "train[90%:]"},
        ("train[:80%]", "train[80%:90%]", "train[90%:]"),
    ),
    "validation in the training split": (
        ("train", "test"),
        {"train": "train[:90%]", "validation": "train[90%:]"},
        ("train[:90%]", "train[90%:]", "test"),
    ),
    "training with the validation split": (
        THREE,
        {"train": "train+validation"},
        ("train+validation", "", "test"),
    ),
    "test with the validation split": (THREE, {"test": "validation"}, ("train", "", "validation")),
    "other names": (("a", "b"), {"train": "a", "test": "b"}, ("a", "", "b")),
}


@pytest.mark.parametrize("size", [0, 8], ids=["in memory", "streamed"])
@pytest.mark.parametrize(("names", "choice", "expected"), CHOICES.values(), ids=CHOICES)
def test_splits_of_tfds_are_found_and_chosen(stripes, names, choice, expected, size):
    data_dir = stripes(*names)
    counts, used = splits_of(data_dir, image_size=size, splits=SplitChoice(**choice))
    assert used == expected
    assert set(counts) == {kind for kind, name in zip(THREE, expected, strict=True) if name}


def test_held_out_share_of_a_streamed_tfds_set_is_stratified(stripes):
    found = []
    for size in (0, 8):
        options = {"image_size": size, "splits": SplitChoice(held_out=0.2, seed=3)}
        dataset = load_dataset("stripes", stripes("train", "test"), **options)
        found.append(values(dataset.validation))
        assert sorted(found[-1] + values(dataset.train)) == list(range(60))
    assert np.bincount(np.array(found[0]) % 3).tolist() == [4, 4, 4]
    assert found[0] == found[1]


# What the user says, and the error.
INVALID = {
    "unknown split": ({"test": "tset"}, "unknown split 'tset': expected one of test, train"),
    "unknown part": ({"test": "tset[:5]"}, "the split 'tset\\[:5\\]' of dataset 'stripes' cannot"),
    "syntax": (
        {"train": "train[:90"},
        "expected a split, or an expression such as train\\[:90%\\]",
    ),
    "beyond the end": ({"train": "train[:99]"}, "cannot be read: .*incompatible with 60 examples"),
    "empty": ({"test": "test[:0]"}, "'test\\[:0\\]' of dataset 'stripes' has no examples"),
    "validation in training": (
        {"validation": "train[90%:]"},
        "the validation split 'train\\[90%:\\]' and the train split 'train' of stripes have common"
        " examples: choose both, with --config.data.train_split and --config.data.validation_split",
    ),
    "validation in test": (
        {"validation": "test[:5]", "test": "test[4:]"},
        "the validation split 'test\\[:5\\]' and the test split 'test\\[4:\\]' of stripes have",
    ),
    "two validation splits": (
        {"held_out": 0.1, "validation": "test[:5]"},
        "config.data.validation is 0.1 and config.data.validation_split is 'test\\[:5\\]'",
    ),
    "seed of nothing": ({"seed": 3}, "config.data.validation_seed is 3, but no examples are held"),
    "small share": ({"held_out": 1e-4}, "config.data.validation is 0.0001, which holds out none"),
}


@pytest.mark.parametrize(("choice", "message"), INVALID.values(), ids=INVALID)
def test_splits_that_do_not_fit_are_refused(stripes, choice, message):
    with pytest.raises(UserError, match=message) as e:
        splits_of(stripes("train", "test"), splits=SplitChoice(**choice))
    assert "\n" not in str(e.value)


def test_expressions_are_those_of_tfds_on_the_digits():
    splits = SplitChoice(train="train[:1000]", validation="train[1000:]", test="test[:50%]")
    dataset = load_dataset("digits", splits=splits)
    assert [len(split) for split in dataset.splits.values()] == [1000, 437, 180]
    whole = load_dataset("digits")
    np.testing.assert_array_equal(dataset.validation.images, whole.train.images[1000:])
    assert len(load_split("digits", "test[:25%]")) == 90
    with pytest.raises(UserError, match="have common examples"):
        load_dataset("digits", splits=SplitChoice(test="train[:5]"))


def test_keys_without_effect_are_refused():
    with pytest.raises(UserError, match="label_key have no effect on digits, whose images"):
        load_dataset("digits", keys=FeatureKeys(label="label"))
    with pytest.raises(UserError, match="label_key have no effect on digits, whose images"):
        load_split("digits", keys=FeatureKeys(label="label"))


def test_noise_has_no_expressions():
    with pytest.raises(UserError, match=r"unknown split 'train\[:9\]': expected one of"):
        load_dataset("fake:4x4x1:2:64", splits=SplitChoice(train="train[:9]"))


CLASSES = ("a", "b")


def write_images(root, *splits, per_class=10):
    files = {
        f"{split}/{name}/{i}.png": constant_image(20 * s + 10 * k + i)
        for s, split in enumerate(splits)
        for k, name in enumerate(CLASSES)
        for i in range(per_class)
    }
    return write_folder(root, files)


# Folders, what the user says, and the names of what is used.
FOLDERS = {
    "valid and test": (("train", "valid", "test"), {}, ("train", "valid", "test")),
    "only train": (("train",), {}, ("train, without held-out 0.1", "", "train, held-out 0.1")),
    "no splits": ((".",), {}, ("., without held-out 0.1", "", "., held-out 0.1")),
    "chosen": (("a1", "b1"), {"train": "a1", "test": "b1"}, ("a1", "", "b1")),
}


@pytest.mark.parametrize("size", [0, 8], ids=["in memory", "streamed"])
@pytest.mark.parametrize(("splits", "choice", "expected"), FOLDERS.values(), ids=FOLDERS)
def test_splits_of_folders_are_found_and_chosen(tmp_path, splits, choice, expected, size):
    name = write_images(tmp_path, *splits)
    dataset = load_dataset(name, image_size=size, splits=SplitChoice(**choice))
    assert dataset.names == expected
    seen = [value for split in dataset.splits.values() for value in values(split)]
    assert len(set(seen)) == len(seen) == 20 * len(splits)


@pytest.mark.parametrize("size", [0, 8], ids=["in memory", "streamed"])
def test_splits_of_a_table_are_those_of_its_column(tmp_path, size):
    write_images(tmp_path, "x")
    rows = ["path,label,split"] + [
        f"x/{name}/{i}.png,{name},{'train' if i < 6 else 'val' if i < 8 else 'test'}"
        for name in CLASSES
        for i in range(10)
    ]
    file = tmp_path / "images.csv"
    file.write_text("\n".join(rows))
    dataset = load_dataset(f"csv:{file}", image_size=size)
    assert dataset.names == ("train", "val", "test")
    assert [len(split) for split in dataset.splits.values()] == [12, 4, 4]
    assert values(dataset.validation) == [6, 7, 16, 17]
    assert len(load_split(f"csv:{file}", "val")) == 4
    file.write_text("\n".join(row.rpartition(",")[0] for row in rows))
    dataset = load_dataset(f"csv:{file}", image_size=size)
    assert [len(split) for split in dataset.splits.values()] == [18, 2]
    assert dataset.names.test == "train, held-out 0.1"


def test_overlapping_folders_are_refused(tmp_path):
    name = write_images(tmp_path, "train", "test")
    (tmp_path / "link").symlink_to(tmp_path / "train")
    for choice in ({"validation": "train"}, {"test": "link"}):
        with pytest.raises(UserError, match="have common examples"):
            load_dataset(name, splits=SplitChoice(**choice))


def test_dataset_says_which_splits_it_uses(tmp_path):
    dataset = load_dataset(write_images(tmp_path, "train", "val", "test"))
    assert dataset.describe_splits().splitlines()[-1] == (
        "splits: trained on train (20 examples); val (20 examples) is evaluated during training and"
        " chooses @best; test (20 examples) is evaluated at the end"
    )


def prepare_many(root, keys, features):
    """Prepares a dataset with images and labels of the given names; label k is (i + k) % 3."""

    def info(self):
        image, label = tfds.features.Image(), tfds.features.ClassLabel(names=["a", "b", "c"])
        types = {name: image if "image" in name else label for name in features}
        dictionary = tfds.features.FeaturesDict(types)
        return tfds.core.DatasetInfo(builder=self, features=dictionary, supervised_keys=keys)

    def examples(self, n):
        for i in range(n):
            yield (
                i,
                {
                    name: encode_png(constant_image(10 * i + k)) if "image" in name else (i + k) % 3
                    for k, name in enumerate(features)
                },
            )

    return prepare_stripes(root, _info=info, _generate_examples=examples)


FEATURES = ("coarse_label", "image", "image_left", "label")
# Supervised keys, keys of the config, and the names of image and label.
KEYS = {
    "supervised keys": (("image", "label"), (), ("image", "label")),
    "chosen": (("image", "label"), ("image_left", "coarse_label"), ("image_left", "coarse_label")),
    "one of them chosen": (("image", "label"), ("", "coarse_label"), ("image", "coarse_label")),
    "no supervised keys": (None, ("image", "label"), ("image", "label")),
}


@pytest.mark.parametrize(("keys", "chosen", "expected"), KEYS.values(), ids=KEYS)
def test_image_and_label_are_those_of_the_keys(tmp_path, keys, chosen, expected):
    data_dir = prepare_many(tmp_path, keys, FEATURES)
    dataset = load_dataset("stripes", data_dir, keys=FeatureKeys(*chosen))
    k_image, k_label = (FEATURES.index(name) for name in expected)
    index = (dataset.train.images[:, 0, 0, 0] - k_image) // 10
    np.testing.assert_array_equal(dataset.train.labels, (index + k_label) % 3)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (("", "label"), "of type Image, image, image_left: choose .*config.data.image_key=image"),
        (("image", ""), "ClassLabel, coarse_label, label: choose one with --config.data.label_key"),
        (("image", "image"), "label_key is 'image', which .*: expected one of coarse_label, label"),
        (("imgae", "label"), "image_key is 'imgae', which .*: expected one of image, image_left"),
    ],
)
def test_images_or_labels_that_are_ambiguous_are_refused(tmp_path, chosen, message):
    data_dir = prepare_many(tmp_path, None, FEATURES)
    with pytest.raises(UserError, match=message) as e:
        load_dataset("stripes", data_dir, keys=FeatureKeys(*chosen))
    assert "\n" not in str(e.value)


def test_split_without_labels_is_not_used(tmp_path):
    """As the test split of ImageNet in TFDS, whose labels are -1."""

    def examples(self, n):
        for i in range(n):
            label = -1 if n == 4 else i % 3
            yield i, {"picture": encode_png(constant_image(i)), "kind": label}

    counts = {"train": 9, "validation": 3, "test": 4}
    data_dir = prepare_stripes(tmp_path, counts=counts, _generate_examples=examples)
    dataset = load_dataset("stripes", data_dir)
    assert (dataset.names, dataset.validation) == (("train", "", "validation"), None)


def test_run_split_is_opened_by_its_role(tmp_path):
    name = write_images(tmp_path, "train", "val")
    whole, held = SplitChoice(), SplitChoice(held_out=0.2)
    lengths = {
        ("", whole): 20,
        ("test", whole): 20,
        ("validation", whole): 20,
        ("train", whole): 20,
        ("train", held): 16,
        ("validation", held): 4,
        ("held-out", held): 4,
        ("test", held): 20,
        ("val", held): 20,
    }
    found = {key: len(load_split(name, key[0], splits=key[1])) for key in lengths}
    assert found == lengths
    with pytest.raises(UserError, match="the run has no held-out split: expected one of train, te"):
        load_split(name, "held-out", splits=whole)
