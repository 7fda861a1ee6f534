"""A folder of images as a dataset, and what is done about images that cannot be used."""

import io

import numpy as np
import pytest
from PIL import Image

from resflax import UserError
from resflax.data import load_dataset, stream_train_batches


def png(image):
    out = io.BytesIO()
    Image.fromarray(image).save(out, "png")
    return out.getvalue()


def colour(value, height=6, width=5):
    return np.full((height, width, 3), value, np.uint8)


def write(root, files):
    """Files by path: bytes, or an image."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else png(content))
    return f"folder:{root}"


@pytest.fixture
def good():
    """Two classes, three images to train on and two to test on; the value tells which."""
    return {
        "train/b/2.png": colour(12),
        "train/a/1.png": colour(1),
        "train/b/10.png": colour(10),
        "test/b/x.png": colour(20),
        "test/a/y.PNG": colour(21),
        "train/.hidden": b"",
    }


def test_classes_and_examples_are_counted_by_name(tmp_path, good):
    data = load_dataset(write(tmp_path, good))
    assert data.train.images[:, 0, 0, 0].tolist() == [1, 10, 12]
    assert data.train.labels.tolist() == [0, 1, 1]
    assert data.test.images[:, 0, 0, 0].tolist() == [21, 20]
    assert (data.image_shape, data.num_classes, data.skipped) == ((6, 5, 3), 2, [])


CMYK = io.BytesIO()
Image.new("CMYK", (5, 6)).save(CMYK, "jpeg")
NOISE = png(np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8))
BAD = {
    "truncated": (NOISE[:-40], "is no image that can be read"),
    "garbage": (b"\xff\xd8 not a picture at all", "is no image that can be read"),
    "empty": (b"", "is empty"),
    "grey among colour": (png(np.zeros((6, 5), np.uint8)), r"is of shape \(6, 5, 1\)"),
    "CMYK": (CMYK.getvalue(), "is of mode CMYK"),
    "16 bits": (png(np.zeros((6, 5), np.uint16)), "has more than 8 bits"),
    "one pixel wide": (png(colour(0, 6, 1)), "is 1 pixels wide and 6 high"),
    "of another size": (png(colour(0, 7, 5)), r"is of shape \(7, 5, 3\), the first of \(6, 5, 3\)"),
}


@pytest.mark.parametrize(("content", "reason"), BAD.values(), ids=BAD)
def test_a_bad_image_is_named_or_left_out_and_reported(tmp_path, good, content, reason):
    where = "train/b/11.jpg" if content.startswith(b"\xff\xd8") else "train/b/11.png"
    name = write(tmp_path, good | {where: content})
    with pytest.raises(UserError, match=f"{where}: {reason}.*on_bad_example=skip") as e:
        load_dataset(name)
    assert "\n" not in str(e.value)
    data = load_dataset(name, on_bad_example="skip")
    assert data.train.images[:, 0, 0, 0].tolist() == [1, 10, 12]
    assert len(data.skipped) == 1
    assert where in data.skipped[0]


def test_channels_convert_what_is_grey_or_cmyk(tmp_path, good):
    grey = np.full((6, 5), 9, np.uint8)
    files = good | {"train/b/11.png": grey, "train/b/12.jpg": CMYK.getvalue()}
    data = load_dataset(write(tmp_path, files), channels=3)
    assert data.train.images[2].tolist() == colour(9).tolist()
    assert len(data.train) == 5
    assert load_dataset(write(tmp_path, files), channels=1).image_shape == (6, 5, 1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"train/c/note.txt": b"hello"}, "note.txt: is none of .jpg, .jpeg, .png"),
        ({"test/c/1.png": colour(3)}, "test/c: is a class that train lacks"),
    ],
)
def test_what_does_not_belong_is_named_or_reported(tmp_path, good, changes, reason):
    if "train/c/note.txt" in changes:
        changes |= {"train/c/1.png": colour(3), "test/c/1.png": colour(4)}
    name = write(tmp_path, good | changes)
    with pytest.raises(UserError, match=reason):
        load_dataset(name)
    skipped = load_dataset(name, on_bad_example="skip").skipped
    assert len(skipped) == 1
    assert reason.split(":")[0] in skipped[0]


def test_a_class_without_images_is_named_or_reported(tmp_path, good):
    name = write(tmp_path, good)
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(UserError, match="train/empty: is a class without images"):
        load_dataset(name)
    data = load_dataset(name, on_bad_example="skip")
    assert data.num_classes == 3
    assert len(data.skipped) == 2  # the test split has none of it either


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"test/a/1.png": colour(0)}, "expected the folders train and test"),
        ({"train/a/1.png": colour(0)}, "expected the folders train and test"),
        ({"train/a/1.png": b"", "test/a/1.png": b""}, "has no example that can be used"),
    ],
)
def test_a_folder_that_is_no_dataset_is_one_line(tmp_path, files, reason):
    with pytest.raises(UserError, match=reason):
        load_dataset(write(tmp_path, files), on_bad_example="skip")
    with pytest.raises(UserError, match="there is no folder"):
        load_dataset(f"folder:{tmp_path}/none")


@pytest.fixture(scope="module")
def one_in_a_hundred(tmp_path_factory):
    """10,000 images of which 100 are cut short, garbage or empty; the folder and their names."""
    root, data = tmp_path_factory.mktemp("corrupt"), png(colour(7))
    bad = sorted(np.random.default_rng(0).choice(10_000, 100, replace=False).tolist())
    files = {f"train/{i % 2}/{i:05}.png": data for i in range(10_000)}
    names = [f"train/{i % 2}/{i:05}.png" for i in bad]
    for i, name in enumerate(names):
        files[name] = (data[: 20 + i % 30], bytes(range(i, i + 50)), b"")[i % 3]
    write(root, files | {"test/0/1.png": data, "test/1/1.png": data})
    return root, names


def told(dataset, root):
    return [line.split(": ")[0].removeprefix(f"{root}/") for line in dataset.skipped]


def test_a_hundred_corrupt_files_of_ten_thousand_are_told_apart(one_in_a_hundred):
    root, names = one_in_a_hundred
    found = load_dataset(f"folder:{root}", on_bad_example="skip")
    assert len(found.train) == 9900
    assert sorted(told(found, root)) == sorted(names)


@pytest.mark.parametrize("workers", [0, 2])
def test_read_as_they_are_needed_they_are_told_after_an_epoch(one_in_a_hundred, workers):
    root, names = one_in_a_hundred
    found = load_dataset(f"folder:{root}", image_size=8, on_bad_example="skip")
    batches = stream_train_batches(
        found.train, seed=0, batch_size=100, start=0, stop=100, workers=workers
    )
    assert sum(len(batch["label"]) for batch in batches) == 10_000
    assert sorted(told(found, root)) == sorted(names)
