"""Datasets in a folder of images, with and without unusable images."""

import io

import numpy as np
import pytest
from helpers.image_folders import constant_image, encode_png, write_folder
from PIL import Image

from resflax import UserError
from resflax.data import load_dataset, train_batches


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
    "gray among color": (encode_png(np.zeros((6, 5), np.uint8)), r"has shape \(6, 5, 1\)"),
    "values out of range": (NEGATIVE.getvalue(), "has pixel values from -1 to -1: expected 0 to"),
    "one pixel wide": (encode_png(constant_image(0, 6, 1)), "is 1x6 pixels: expected 2 or more"),
    "another size": (
        encode_png(constant_image(0, 7, 5)),
        r"has shape \(7, 5, 3\), but the first image has \(6, 5, 3\)",
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


def test_channels_convert_gray_and_cmyk_images(tmp_path, valid_files):
    gray = np.full((6, 5), 9, np.uint8)
    files = valid_files | {"train/b/11.png": gray, "train/b/12.jpg": CMYK.getvalue()}
    data = load_dataset(write_folder(tmp_path, files), channels=3)
    assert data.train.images[2].tolist() == constant_image(9).tolist()
    assert len(data.train) == 5
    assert load_dataset(write_folder(tmp_path, files), channels=1).image_shape == (6, 5, 1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"train/c/note.txt": b"hello"}, "note.txt: is not a .jpg, .jpeg, .png file"),
        ({"test/c/1.png": constant_image(3)}, "test/c: is a class that the training split lacks"),
    ],
)
def test_unexpected_file_or_class_raises_or_is_reported(tmp_path, valid_files, changes, reason):
    if "train/c/note.txt" in changes:
        changes |= {"train/c/1.png": constant_image(3), "test/c/1.png": constant_image(4)}
    name = write_folder(tmp_path, valid_files | changes)
    with pytest.raises(UserError, match=reason):
        load_dataset(name)
    skipped = load_dataset(name, on_bad_example="skip").skipped
    assert len(skipped) == 1
    assert reason.split(":")[0] in skipped[0]


def test_class_without_images_raises_or_is_reported(tmp_path, valid_files):
    name = write_folder(tmp_path, valid_files)
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(UserError, match="train/empty: is a class without images"):
        load_dataset(name)
    data = load_dataset(name, on_bad_example="skip")
    assert data.num_classes == 3
    assert len(data.skipped) == 2  # the test split has no images of it either


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"test/a/1.png": constant_image(0)}, "expected the folders train and test"),
        ({"train/a/1.png": constant_image(0)}, "expected the folders train and test"),
        ({"train/a/1.png": b"", "test/a/1.png": b""}, "has no readable example"),
    ],
)
def test_folder_without_a_usable_split_raises(tmp_path, files, reason):
    with pytest.raises(UserError, match=reason):
        load_dataset(write_folder(tmp_path, files), on_bad_example="skip")
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
