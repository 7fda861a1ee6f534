"""Datasets in a folder of images, with and without unusable images."""

import io
import os
import re

import numpy as np
import pytest
from helpers.image_folders import constant_image, encode_png, write_folder
from PIL import Image

from resflax import UserError
from resflax.data import load_dataset, load_split, train_batches
from resflax.data.skipping import check_skipped


@pytest.fixture
def valid_files():
    """Two classes with three training and two test images, identified by their pixel values."""
    return {
        "train/b/2.png": constant_image(12),
        "train/a/1.png": constant_image(1),
        "train/b/10.png": constant_image(10),
        "test/b/x.png": constant_image(20),
        "test/a/y.PNG": constant_image(21),
        "train/.hidden": b"",
    }


def test_folder_sorts_classes_and_examples_by_name(tmp_path, valid_files):
    data = load_dataset(write_folder(tmp_path, valid_files))
    assert data.train.images[:, 0, 0, 0].tolist() == [1, 10, 12]
    assert data.train.labels.tolist() == [0, 1, 1]
    assert data.test.images[:, 0, 0, 0].tolist() == [21, 20]
    assert (data.image_shape, data.num_classes, data.skipped) == ((6, 5, 3), 2, [])
    assert data.classes == ("a", "b")


CMYK = io.BytesIO()
Image.new("CMYK", (5, 6)).save(CMYK, "jpeg")
NEGATIVE = io.BytesIO()
Image.fromarray(np.full((6, 5), -1, np.int32)).save(NEGATIVE, "tiff")
NOISE = encode_png(np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8))
BAD = {
    "truncated": (NOISE[:-40], "is not a readable image"),
    "garbage": (b"\xff\xd8 not an image at all", "is not a readable image"),
    "empty": (b"", "is empty"),
    "values out of range": (NEGATIVE.getvalue(), "has pixel values from -1 to -1: expected 0 to"),
    "one pixel wide": (encode_png(constant_image(0, 6, 1)), "is 1x6 pixels: expected 2 or more"),
    "another size": (
        encode_png(constant_image(0, 7, 5)),
        "has 5x7 pixels, but the first image has 5x6",
    ),
}


@pytest.mark.parametrize(("content", "reason"), BAD.values(), ids=BAD)
def test_bad_image_raises_or_is_skipped_and_reported(tmp_path, valid_files, content, reason):
    path = "train/b/11.jpg" if content.startswith(b"\xff\xd8") else "train/b/11.png"
    name = write_folder(tmp_path, valid_files | {path: content})
    with pytest.raises(UserError, match=f"{path}: {reason}.*on_bad_example=skip") as e:
        load_dataset(name)
    assert "\n" not in str(e.value)
    data = load_dataset(name, on_bad_example="skip")
    assert data.train.images[:, 0, 0, 0].tolist() == [1, 10, 12]
    assert len(data.skipped) == 1
    assert path in data.skipped[0]


GRAY, COLOR = np.full((6, 5), 9, np.uint8), constant_image((9, 0, 7))
# The images of some files, gray in the other ones.
COLOR_AMONG_GRAY = {
    "first": {"train/a/1.png": COLOR},
    "last": {"train/b/12.png": COLOR},
    "in another split": {"test/b/31.png": COLOR},
    "CMYK": {"train/b/10.png": CMYK.getvalue()},
    "transparent": {"train/b/10.png": encode_png(np.zeros((6, 5, 4), np.uint8))},
}


@pytest.mark.parametrize("color", COLOR_AMONG_GRAY.values(), ids=COLOR_AMONG_GRAY)
def test_gray_images_are_rgb_if_one_has_color(tmp_path, valid_files, color):
    files = dict.fromkeys(valid_files, GRAY) | color
    data = load_dataset(write_folder(tmp_path, files))
    in_rgb = load_dataset(write_folder(tmp_path, files), channels=3)
    assert (
        load_dataset(write_folder(tmp_path, files | dict.fromkeys(color, GRAY))).image_shape[2] == 1
    )
    for name, split in data.splits.items():
        assert split.images.tolist() == in_rgb.splits[name].images.tolist()


def test_channels_convert_gray_and_cmyk_images(tmp_path, valid_files):
    gray = np.full((6, 5), 9, np.uint8)
    files = valid_files | {"train/b/11.png": gray, "train/b/12.jpg": CMYK.getvalue()}
    data = load_dataset(write_folder(tmp_path, files), channels=3)
    assert data.train.images[2].tolist() == constant_image(9).tolist()
    assert len(data.train) == 5
    assert load_dataset(write_folder(tmp_path, files), channels=1).image_shape == (6, 5, 1)


# Changed files, and the problem that is reported if it is skipped.
SINGLE_PROBLEMS = {
    "video": ({"train/b/note.mp4": b"hello"}, "train/b/note.mp4: does not have the suffix of an"),
    "no suffix": ({"train/b/photo": b"hello"}, "train/b/photo: does not have the suffix of an"),
    "no class": ({"train/1.png": b"hello"}, "train/1.png: is not in the folder of a class"),
    "newline": ({"train/b/a\nb.mp4": b""}, r"train/b/a\\nb.mp4: does not have the suffix of an"),
}


@pytest.mark.parametrize(("changes", "reason"), SINGLE_PROBLEMS.values(), ids=SINGLE_PROBLEMS)
def test_single_unusable_file_raises_or_is_reported(tmp_path, valid_files, changes, reason):
    name = write_folder(tmp_path, valid_files | changes)
    with pytest.raises(UserError, match=f"{reason}.*on_bad_example=skip") as e:
        load_dataset(name)
    assert "\n" not in str(e.value)
    data = load_dataset(name, on_bad_example="skip")
    assert len(data.train) == 3
    (line,) = data.skipped
    assert re.search(reason, line)


LITTER = (
    "__MACOSX/train/a/._1.png __MACOSX/._train train/__MACOSX/a/1.png train/a/._1.png .git/x.png"
    " train/.ipynb_checkpoints/1.png train/a/@eaDir/1.png train/@eaDir/x train/Thumbs.db Icon\r"
    " train/a/@__thumb/1.png train/@__thumb/1.png train/a/1.png:Zone.Identifier train/a/1.png~"
    " train/a/Picasa.ini train/a/~$notes.docx train/a/1.xmp train/a/IMG_1.AAE train/b/all.md5"
    " train/a/Thumbs.db train/b/desktop.ini train/a/a_boxes.txt train/labels.csv train/lost+found/1"
    " $RECYCLE.BIN/1.png train/a/.DS_Store train/b/README train/a/1.xml"
)


def test_litter_is_neither_class_nor_image(tmp_path, valid_files):
    data = load_dataset(write_folder(tmp_path, dict.fromkeys(LITTER.split(" "), b"") | valid_files))
    assert data.train.images[:, 0, 0, 0].tolist() == [1, 10, 12]
    assert (data.classes, data.skipped) == (("a", "b"), [])


def test_images_are_found_below_the_folder_of_a_class(tmp_path, valid_files):
    nested = {"train/a/x/y/2.png": constant_image(2), "train/b/images/1.png": constant_image(9)}
    name = write_folder(tmp_path, valid_files | nested)
    for target, link in (("../..", "a/loop"), (".", "a/self"), ("..", "a/x/up")):
        (tmp_path / "train" / link).symlink_to(target)
    data = load_dataset(name)
    assert data.train.images[:, 0, 0, 0].tolist() == [1, 2, 10, 12, 9]
    assert data.train.labels.tolist() == [0, 0, 1, 1, 1]


def test_tiny_imagenet_has_its_labels_in_a_file(tmp_path):
    files = {
        "train/n02/images/n02_0.JPEG": constant_image(1),
        "train/n02/n02_boxes.txt": b"n02_0.JPEG\t0\t0\t62\t62\n",
        "train/n01/images/n01_0.JPEG": constant_image(2),
        "val/images/val_0.JPEG": constant_image(3),
        "val/images/val_1.JPEG": constant_image(4),
        "val/val_annotations.txt": b"val_0.JPEG\tn02\t0\t32\nval_1.JPEG\tn01\t1\t2\n",
        "test/images/test_0.JPEG": constant_image(5),
        "wnids.txt": b"n02\nn01\n",
    }
    name = write_folder(tmp_path, files)
    data = load_dataset(name)
    assert data.test.images[:, 0, 0, 0].tolist() == [3, 4]
    assert data.test.labels.tolist() == [1, 0]
    assert load_split(name).files == [("images/val_0.JPEG", 1), ("images/val_1.JPEG", 0)]


@pytest.mark.parametrize("suffix", ["webp", "bmp", "TIFF", "gif", "ppm", "JPG", "jfif"])
def test_all_formats_of_pillow_are_taken(tmp_path, valid_files, suffix):
    file = io.BytesIO()
    kind = {"jpg": "jpeg", "jfif": "jpeg"}.get(suffix.lower(), suffix)
    Image.fromarray(constant_image(13)).save(file, kind)
    data = load_dataset(
        write_folder(tmp_path, valid_files | {f"train/b/9.{suffix}": file.getvalue()}), channels=3
    )
    assert len(data.train) == 4
    assert abs(int(data.train.images[3, 0, 0, 0]) - 13) <= 1


def test_names_of_classes_differ_in_how_accents_are_encoded(tmp_path, valid_files):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    files = {name.replace("/b/", f"/{composed}/"): valid_files[name] for name in valid_files}
    train_only = {name: v for name, v in files.items() if "test" not in name}
    test_only = {n.replace(composed, decomposed): v for n, v in files.items() if "test" in n}
    data = load_dataset(write_folder(tmp_path / "x", train_only | test_only))
    assert data.classes == ("a", composed)
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([0, 1, 1], [0, 1])
    both = files | {f"train/{decomposed}/1.png": constant_image(1)}
    with pytest.raises(UserError, match=f"has 2 folders for the class '{composed}'"):
        load_dataset(write_folder(tmp_path / "y", both))


def test_name_of_a_class_can_be_any_bytes(tmp_path, valid_files):
    name = write_folder(tmp_path, valid_files)
    for split in ("train", "test"):
        os.rename(tmp_path / split / "b", os.fsencode(tmp_path / split) + b"/caf\xe9\n")
    assert load_dataset(name).classes == ("a", "caf\\xe9\\n")


# Changed files, removed folders, and the error, whether single examples are skipped or not.
LAYOUT_ERRORS = {
    "test class": ({"test/c/1.png": b""}, "", "test/c: is a class that the training split lacks"),
    "case": ({"test/B/1.png": b""}, "test/b", "test/B: the training split has the class 'b'"),
    "train class": ({"train/c/1.png": b""}, "", "test: has no images of class 'c', which the"),
    "empty class": ({"train/c/.keep": b""}, "", "train/c: is a class without images"),
    "class of notes": ({"train/c/1.txt": b""}, "", "train/c: is a class without images"),
    "class of videos": ({"train/c/1.mp4": b""}, "", "train/c: 1 of 1 files are not images"),
    "many videos": (
        {f"train/b/{i}.mp4": b"" for i in range(2)},
        "",
        "train/b: 2 of 4 files are not images by their suffix, such as 0.mp4: too many",
    ),
    "one class": ({}, "train/b", "train contains a/: expected a folder for each of two or more"),
    "too high": (
        {"train/b/c/1.png": b"", "train/b/d/1.png": b""},
        "train/a",
        "expected a folder for each of two or more classes; b contains .*c/, d/; if these are",
    ),
    "unreadable": (
        {f"train/a/{i}.png": b"" for i in range(1, 4)},
        "",
        r"train: 3 of 3 examples of class 'a' cannot be used, too many to skip them \(.*train/a/1",
    ),
}


@pytest.mark.parametrize(("files", "removed", "error"), LAYOUT_ERRORS.values(), ids=LAYOUT_ERRORS)
def test_layout_errors_are_not_skipped(tmp_path, valid_files, files, removed, error):
    name = write_folder(tmp_path, valid_files | files)
    if removed:
        for path in (tmp_path / removed).iterdir():
            if removed != "train/b" or path.is_file():
                path.unlink()
        (tmp_path / removed).rmdir()
    with pytest.raises(UserError, match=error) as e:
        load_dataset(name, on_bad_example="skip")
    assert "\n" not in str(e.value)
    if "cannot be used" not in error:
        with pytest.raises(UserError, match=error):
            load_dataset(name)


def test_streaming_split_refuses_to_lose_a_class(tmp_path, valid_files):
    name = write_folder(tmp_path, valid_files | {f"train/a/{i}.png": b"" for i in range(1, 4)})
    data = load_dataset(name, image_size=8, on_bad_example="skip")
    with pytest.raises(UserError, match="train: . of 3 examples of class 'a' cannot be used"):
        for _ in train_batches(data.train, seed=0, batch_size=2, start=0, stop=3):
            pass


def test_class_without_readable_examples_is_refused(tmp_path):
    """Of a TFDS split, whose labels are known only after reading."""

    class Labels(list):
        classes, name = ("a", "b"), "train"
        labels = staticmethod(lambda: None)

    remaining = np.zeros(98, np.int32)
    with pytest.raises(UserError, match="after skipping 1 examples, class 'b' has none"):
        check_skipped(Labels(range(99)), {3: "train[3]: is empty"}, remaining)
    check_skipped(Labels(range(99)), {3: "train[3]: is empty"}, np.append(remaining, 1))


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(UserError, match="none does not exist: expected"):
        load_dataset(f"folder:{tmp_path}/none")


@pytest.fixture(scope="module")
def corrupt_folder(tmp_path_factory):
    """A folder of 10,000 images, 100 of them truncated, garbage or empty; and their names."""
    root, data = tmp_path_factory.mktemp("corrupt"), encode_png(constant_image(7))
    bad = sorted(np.random.default_rng(0).choice(10_000, 100, replace=False).tolist())
    files = {f"train/{i % 2}/{i:05}.png": data for i in range(10_000)}
    names = [f"train/{i % 2}/{i:05}.png" for i in bad]
    for i, name in enumerate(names):
        files[name] = (data[: 20 + i % 30], bytes(range(i, i + 50)), b"")[i % 3]
    write_folder(root, files | {"test/0/1.png": data, "test/1/1.png": data})
    return root, names


def skipped_names(dataset, root):
    return [line.split(": ")[0].removeprefix(f"{root}/") for line in dataset.skipped]


@pytest.mark.slow
def test_in_memory_split_reports_all_corrupt_files(corrupt_folder):
    root, names = corrupt_folder
    data = load_dataset(f"folder:{root}", on_bad_example="skip")
    assert len(data.train) == 9900
    assert sorted(skipped_names(data, root)) == sorted(names)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.multiprocess)])
def test_streaming_split_reports_corrupt_files_after_an_epoch(corrupt_folder, num_workers):
    root, names = corrupt_folder
    data = load_dataset(f"folder:{root}", image_size=8, on_bad_example="skip")
    batches = train_batches(
        data.train, seed=0, batch_size=100, start=0, stop=100, num_workers=num_workers
    )
    assert sum(len(batch["label"]) for batch in batches) == 10_000
    assert sorted(skipped_names(data, root)) == sorted(names)
