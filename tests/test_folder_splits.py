"""Folders of the splits of a folder of images: names, missing ones, and other layouts."""

import pytest
from helpers.image_folders import write_folder

from resflax import UserError
from resflax.data.folder_splits import describe_splits, find_splits


def touch(root, names):
    """Writes empty files: only their names matter here."""
    write_folder(root, dict.fromkeys(names.split(), b""))


CLASSES = "train/a/1.png train/b/1.png"
# Files besides `CLASSES`, and the folders of train, validation and test.
SPLITS = {
    "val": ("val/a/1.png", ("train", "val", "")),
    "valid, any case": ("Valid/a/1.png", ("train", "Valid", "")),
    "validation": ("VALIDATION/a/1.png", ("train", "VALIDATION", "")),
    "dev": ("dev/a/1.webp", ("train", "dev", "")),
    "test": ("Test/a/1.png", ("train", "", "Test")),
    "testing": ("testing/a/1.png", ("train", "", "testing")),
    "another folder": ("holdout/a/1.png images/1.png", ("train", "", "")),
    "both": ("valid/a/1.png test/a/1.png README.roboflow.txt", ("train", "valid", "test")),
    "only train": ("", ("train", "", "")),
    "flat test and val": ("test/1.JPEG val/a/1.JPEG", ("train", "val", "")),
    "flat test": ("test/1.JPEG", ("train", "", "")),
    "test in one folder": ("test/images/1.png", ("train", "", "")),
    "flat val and test": ("val/1.png test/a/1.png", ("train", "", "test")),
    "test of one class": ("test/a/1.png", ("train", "", "test")),
    "Tiny ImageNet": (
        "train/a/images/1.JPEG val/images/1.JPEG val/val_annotations.txt test/images/1.JPEG",
        ("train", "val", ""),
    ),
    "litter": ("__MACOSX/train/._1.png .git/x Thumbs.db val/a/1.png", ("train", "val", "")),
}


@pytest.mark.parametrize(("files", "expected"), SPLITS.values(), ids=SPLITS)
def test_splits_are_found_by_the_names_of_folders(tmp_path, files, expected):
    touch(tmp_path, f"{CLASSES} {files}")
    splits = find_splits(tmp_path)
    assert splits == dict(zip(("train", "validation", "test"), expected, strict=True))
    note = describe_splits(tmp_path, splits)
    unused = any(word in files for word in ("test/1", "val/1", "images", "hold"))
    assert ("is not used" in note) == unused
    assert unused or not note


def test_note_names_the_split_that_another_one_replaces(tmp_path):
    touch(tmp_path, f"{CLASSES} val/a/1.png test/a/1.png")
    note = describe_splits(tmp_path, find_splits(tmp_path, {"test": "val"}))
    assert note.endswith("test/ is not used")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ("training/a/1.png training/b/1.png", "training"),
        ("TRAIN/a/1.png TRAIN/b/1.png", "TRAIN"),
        ("a/1.png b/1.png b/2.png", "."),
        ("a/images/1.png b/images/1.png", "."),
        ("a/x/1.png a/y/2.png b/1.png LICENSE classes.txt", "."),
    ],
)
def test_training_split_has_two_names_or_is_the_folder(tmp_path, files, expected):
    touch(tmp_path, files)
    splits = find_splits(tmp_path)
    assert splits == {"train": expected, "validation": "", "test": ""}
    note = describe_splits(tmp_path, splits)
    assert ("no splits: all of it is the training split" in note) == (expected == ".")


def test_link_to_a_split_is_the_same_split(tmp_path):
    touch(tmp_path, f"{CLASSES} val/a/1.png")
    (tmp_path / "valid").symlink_to("val")
    assert find_splits(tmp_path)["validation"] == "val"


def test_splits_can_be_chosen(tmp_path):
    touch(tmp_path, "fold1/a/1.png fold1/b/1.png fold2/a/1.png fold2/b/1.png")
    chosen = {"train": "fold1", "validation": "fold2", "test": ""}
    assert find_splits(tmp_path, chosen) == chosen
    assert find_splits(tmp_path, {"train": "."})["train"] == "."
    with pytest.raises(UserError, match="unknown split 'fold3': expected one of fold1, fold2"):
        find_splits(tmp_path, {"train": "fold3"})


# Files, and the end of the error.
ERRORS = {
    "ambiguous": (f"{CLASSES} val/a/1.png Valid/a/1.png", "the folders Valid and val, which could"),
    "two training": (f"{CLASSES} Training/a/1.png", "folders Training and train, which could both"),
    "flat val": (f"{CLASSES} val/1.png", "val are not in folders of the training classes"),
    "no train": ("test/a/1.png test/b/1.png", "contains test/, no training split: expected train/"),
    "one class": (
        "photos/1.png",
        "no training split: one class cannot be learned; the dataset may",
    ),
    "empty": ("", "contains nothing, no training split"),
    "too high": ("x/train/a/1.png x/train/b/1.png", "did you mean folder:.*/x. It has a training"),
    "two too high": ("x/y/train/a/1.png x/y/val/a/1.png", "did you mean folder:.*/x/y. It has a"),
    "classes below": ("x/a/1.png x/b/1.png", "did you mean folder:.*/x. It contains a/, b/"),
    "flat": ("1.png 2.png", "without class folders have no labels: .*csv:FILE"),
    "folds": ("i/a/1.png i/b/1.png j/a/1.png j/b/1.png", "same folders a, b.*data.train_split=i"),
    "own names": ("s_test/a/1.png s_test/b/1.png s_train/a/1.png s_train/b/1.png", "split=s_train"),
}


@pytest.mark.parametrize(("files", "message"), ERRORS.values(), ids=ERRORS)
def test_unclear_splits_are_an_error_of_one_line(tmp_path, files, message):
    root = tmp_path / "root"  # without siblings, which other tests' folders are
    root.mkdir()
    touch(root, files)
    with pytest.raises(UserError, match=message) as e:
        find_splits(root)
    assert "\n" not in str(e.value)


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(UserError, match="none does not exist: expected one with images"):
        find_splits(tmp_path / "none")
