"""Fingerprints of datasets, and what they say about changed data."""

import re
import shutil

import numpy as np
import pytest
from helpers.image_folders import Stripes, constant_image, prepare_stripes, write_folder

from resflax.data import Dataset, InMemorySplit, load_dataset
from resflax.data.fingerprint import SAMPLE_SIZE, files_fingerprint, sample_rank
from resflax.data.fingerprint_diff import fingerprint_diff
from resflax.data.folder import FolderSource
from resflax.data.roles import SplitChoice

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


def swap(root, first, second):
    (root / first).rename(root / "swapped")
    (root / second).rename(root / first)
    (root / "swapped").rename(root / second)


# What is done to the folder, and the differences.
CHANGES = {
    "added and removed": (
        lambda root: (
            write_folder(root, {"train/bee/8.png": constant_image(1)}),
            (root / "test" / "ant" / "0.png").unlink(),
        ),
        [
            "1 example added to class 'bee' of the train split",
            "in the train split, added: 'bee/8.png'",
            "1 example removed from class 'ant' of the test split",
            "in the test split, removed: 'ant/0.png'",
        ],
    ),
    "swapped classes": (
        lambda root: swap(root / "train", "ant", "bee"),
        ["in the train split, the examples of these classes are swapped: 'ant' and 'bee'"],
    ),
    "swapped files of different names": (
        lambda root: swap(root / "train", "ant/0.png", "bee/1.png"),
        ["in the train split, the examples of these classes are swapped: 'ant' and 'bee'"],
    ),
    "other pixels, equal size": (
        lambda root: write_folder(root, {"test/bee/1.png": constant_image(51)}),
        ["in the test split, other contents: 'bee/1.png'"],
    ),
    "moved to another class": (
        lambda root: (root / "train/ant/0.png").rename(root / "train/bee/7.png"),
        [
            "1 example removed from class 'ant' of the train split",
            "1 example added to class 'bee' of the train split",
            "in the train split, renamed: 'ant/0.png -> bee/7.png'",
        ],
    ),
}


@pytest.mark.parametrize(("change", "expected"), CHANGES.values(), ids=CHANGES)
def test_changes_of_a_folder_are_named(open_folder, tmp_path, change, expected):
    first = open_folder()
    change(tmp_path)
    assert fingerprint_diff(first, open_folder()) == expected


@pytest.mark.parametrize("size", [0, 8])
def test_held_out_examples_are_compared(tmp_path, size):
    """Half of the training split is held out; one of its images gets other pixels."""
    name = write_folder(tmp_path, FILES)

    def fingerprint():
        splits = SplitChoice(held_out=0.4)
        train = load_dataset(name, image_size=size, splits=splits).train
        return {"classes": ["ant", "bee"], "splits": {"train": train.fingerprint()}}

    first = fingerprint()
    assert fingerprint_diff(first, fingerprint()) == []
    write_folder(tmp_path, {f"train/ant/{i}.png": constant_image(90 + i) for i in range(3)})
    (change,) = fingerprint_diff(first, fingerprint())
    assert change.startswith("in the train split, other contents: 'ant/")


def test_renamed_file_is_named(tmp_path):
    write_folder(tmp_path, FILES)
    first = load_dataset(f"folder:{tmp_path}", image_size=8).fingerprint()
    (tmp_path / "train/ant/0.png").rename(tmp_path / "train/ant/00.png")
    changed = load_dataset(f"folder:{tmp_path}", image_size=8).fingerprint()
    expected = ["in the train split, renamed: 'ant/0.png -> ant/00.png'"]
    assert fingerprint_diff(first, changed) == expected


def test_sample_of_a_large_folder_changes_with_its_files(tmp_path):
    """Its files have the lowest ranks: an added file replaces at most one other."""
    files = [(f"a/{i}.png", 0) for i in range(1000)]
    write_folder(tmp_path, {name: name.encode() for name, _ in files})

    def fingerprint(files):
        split = files_fingerprint(tmp_path, files)
        return {"classes": ["a"], "splits": {"train": split}}

    whole = fingerprint(files)
    assert len(whole["splits"]["train"]["sample"]) == SAMPLE_SIZE
    first, last = sorted((sample_rank(name), name) for name, _ in files)[:: len(files) - 1]
    for removed, named in ((first[1], True), (last[1], False)):
        rest = [row for row in files if row[0] != removed]
        (count, *others) = fingerprint_diff(whole, fingerprint(rest))
        assert count == "1 example removed from class 'a' of the train split"
        assert others == [f"in the train split, removed: {removed!r}"] * named


def test_renamed_class_is_named(open_folder, tmp_path):
    first = open_folder()
    for split in ("train", "test"):
        (tmp_path / split / "bee").rename(tmp_path / split / "wasp")
    assert fingerprint_diff(first, open_folder())[0] == "classes 'bee' renamed to 'wasp'"


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
    other = images + np.arange(2, dtype=np.uint8)[:, None, None, None]
    assert difference(other, labels) == ["in the train split, other contents: 'class b'"]


def test_prepared_dataset_has_counts_and_version(tmp_path):
    prepare_stripes(tmp_path / "a")
    dataset = load_dataset("stripes", str(tmp_path / "a"), image_size=8)
    splits = dataset.fingerprint()["splits"]
    assert {name: len(split.pop("sample")) for name, split in splits.items()} == {
        "train": 5,
        "test": 3,
    }
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


@pytest.mark.parametrize("size", [0, 8])
def test_prepared_dataset_with_other_contents_is_found(tmp_path, size):
    """The number of examples and the version are the same; labels or pixels are not."""

    class Rotated(Stripes, skip_registration=True):
        def _generate_examples(self, n):
            for i, example in super()._generate_examples(n):
                yield i, example | {"kind": (example["kind"] + 1) % 3}

    shape = {"shape": (4, 6, 3)}
    fingerprints = []
    for name, base in (("a", Stripes), ("b", Rotated)):
        cls = type("Stripes", (base,), shape, skip_registration=True)
        cls(data_dir=tmp_path / name, file_format="array_record").download_and_prepare()
        data = load_dataset("stripes", str(tmp_path / name), image_size=size)
        fingerprints.append(data.fingerprint())
    assert fingerprint_diff(fingerprints[0], fingerprints[0]) == []
    changes = fingerprint_diff(*fingerprints)
    pattern = r"the label of '\[0\]' is '.' before and '.' now, and . others changed labels"
    assert any(re.search(pattern, change) for change in changes), changes
