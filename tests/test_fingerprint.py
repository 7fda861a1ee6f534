"""Fingerprints of datasets, and what they say about changed data."""

import shutil

import numpy as np
import pytest
from helpers.image_folders import constant_image, prepare_stripes, write_folder

from resflax.data import Dataset, InMemorySplit, load_dataset
from resflax.data.fingerprint import fingerprint_diff
from resflax.data.folder import FolderSource

FILES = {
    f"{split}/{name}/{i}.png": constant_image(40 * i + 10 * label)
    for split in ("train", "test")
    for label, name in enumerate(("ant", "bee"))
    for i in range(3)
}


@pytest.fixture(params=[0, 8], ids=["in memory", "streamed"])
def open_folder(request, tmp_path):
    """A function that opens a folder, by default `tmp_path`, which has the default files."""
    write_folder(tmp_path, FILES)

    def fingerprint(path=tmp_path, **options):
        dataset = load_dataset(f"folder:{path}", image_size=request.param, **options)
        return dataset.fingerprint()

    return fingerprint


def test_unchanged_folder_has_no_difference(open_folder):
    first = open_folder()
    assert first["classes"] == ["ant", "bee"]
    assert first["splits"]["train"]["per_class"] == [3, 3]
    assert fingerprint_diff(first, open_folder()) == []


def test_path_of_a_folder_is_not_part_of_its_content(open_folder, tmp_path, monkeypatch):
    first = open_folder()
    parent = tmp_path.parent
    monkeypatch.chdir(parent)
    (parent / f"{tmp_path.name}-link").symlink_to(tmp_path)
    moved = parent / f"{tmp_path.name}-moved"
    shutil.copytree(tmp_path, moved)
    for path in (f"{tmp_path}/", tmp_path.name, f"./{tmp_path.name}-link", moved):
        assert fingerprint_diff(first, open_folder(path)) == []


def test_missing_file_has_no_size(open_folder, tmp_path):
    """A link to a file that is gone, or a file that is deleted after the folder was listed."""
    (tmp_path / "train" / "ant" / "9.png").symlink_to(tmp_path / "gone.png")
    first = open_folder(on_bad_example="skip")
    assert fingerprint_diff(first, open_folder(on_bad_example="skip")) == []
    source = FolderSource(tmp_path / "train", ("ant", "bee"))
    counts = {"examples": 7, "per_class": [4, 3]}
    before = source.fingerprint()
    (tmp_path / "train" / "ant" / "0.png").unlink()
    after = source.fingerprint()
    assert {key: after[key] for key in counts} == counts
    assert after["files"] != before["files"]


def test_added_and_removed_files_are_counted_by_class(open_folder, tmp_path):
    first = open_folder()
    write_folder(tmp_path, {"train/bee/8.png": constant_image(1)})
    (tmp_path / "test" / "ant" / "0.png").unlink()
    assert fingerprint_diff(first, open_folder()) == [
        "1 example added to class 'bee' of the train split",
        "1 example removed from class 'ant' of the test split",
    ]


def test_renamed_class_is_named(open_folder, tmp_path):
    first = open_folder()
    for split in ("train", "test"):
        (tmp_path / split / "bee").rename(tmp_path / split / "wasp")
    assert fingerprint_diff(first, open_folder())[0] == "classes 'bee' renamed to 'wasp'"


def test_swapped_classes_are_found(open_folder, tmp_path):
    """The names of all files stay the same: their contents, or their sizes, differ."""
    write_folder(tmp_path, {"train/ant/0.png": constant_image(3, height=6, width=5)})
    write_folder(tmp_path, {"train/bee/0.png": constant_image(0)})
    noise = np.random.default_rng(0).integers(0, 255, (6, 5, 3), np.uint8)
    write_folder(tmp_path, {"train/bee/1.png": noise})
    first = open_folder()
    for old, new in (("ant", "x"), ("bee", "ant"), ("x", "bee")):
        (tmp_path / "train" / old).rename(tmp_path / "train" / new)
    (difference,) = fingerprint_diff(first, open_folder())
    assert difference.endswith("of the train split changed")


def test_added_class_and_order_of_classes_are_named():
    split = InMemorySplit(np.zeros((2, 1, 1, 1), np.uint8), np.zeros(2, np.int32))

    def difference(old, new):
        datasets = (Dataset("d", split, split, classes) for classes in (old, new))
        return fingerprint_diff(*(dataset.fingerprint() for dataset in datasets))

    assert difference(("a", "b"), ("a", "b", "c")) == ["classes 'c' added"]
    assert difference(("a", "b"), ("b",))[0] == "classes 'a' removed"
    assert difference(("a", "b"), ("b", "a"))[0] == "the classes are in another order, 'b', 'a'"


def test_labels_and_pixels_are_part_of_the_contents():
    images, labels = np.zeros((2, 1, 1, 1), np.uint8), np.array([0, 1], np.int32)

    def difference(images, labels):
        old, new = (
            InMemorySplit(np.zeros_like(images), np.array([0, 1], np.int32)),
            InMemorySplit(images, labels),
        )
        datasets = (Dataset("d", split, old, ("a", "b")) for split in (old, new))
        return fingerprint_diff(*(dataset.fingerprint() for dataset in datasets))

    changed = ["the contents of the train split changed"]
    assert difference(images, labels) == []
    assert difference(images, labels[::-1]) == changed
    assert difference(images + np.arange(2, dtype=np.uint8)[:, None, None, None], labels) == changed


def test_prepared_dataset_has_counts_and_version(tmp_path):
    prepare_stripes(tmp_path / "a")
    dataset = load_dataset("stripes", str(tmp_path / "a"), image_size=8)
    splits = dataset.fingerprint()["splits"]
    assert splits == {
        "train": {"examples": 5, "version": "1.0.0"},
        "test": {"examples": 3, "version": "1.0.0"},
    }
    (tmp_path / "a").rename(tmp_path / "b")
    moved = load_dataset("stripes", str(tmp_path / "b"), image_size=8)
    assert moved.fingerprint() == dataset.fingerprint()
    other = {"train": {"examples": 7, "version": "1.0.0"}, "test": {"examples": 3, "version": "2"}}
    changes = fingerprint_diff({"classes": [], "splits": splits}, {"classes": [], "splits": other})
    assert changes == [
        "the train split has 7 examples instead of 5",
        "the version of the test split changed",
    ]
