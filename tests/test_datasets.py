"""The included digits, and datasets prepared by TensorFlow Datasets (TFDS)."""

import json
import socket
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from helpers.image_folders import constant_image, prepare_stripes, stripes_builder, write_folder
from sklearn.datasets import load_digits

from resflax import UserError
from resflax.data import InMemorySplit, load_dataset
from resflax.data.prepare import forbid_downloads
from resflax.data.roles import SplitChoice


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("the network was accessed")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, fail)
    monkeypatch.setattr(socket, "getaddrinfo", fail)


def test_digits_are_the_images_of_scikit_learn():
    digits, reference = load_dataset("digits"), load_digits()
    images = np.concatenate([digits.train.images, digits.test.images])[..., 0]
    labels = np.concatenate([digits.train.labels, digits.test.labels])
    loaded = sorted(
        (i.tobytes(), int(k))
        for i, k in zip(np.rint(images / (255 / 16)).astype(np.uint8), labels, strict=True)
    )
    expected = sorted(
        (i.astype(np.uint8).tobytes(), int(k))
        for i, k in zip(reference.images, reference.target, strict=True)
    )
    assert loaded == expected
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    assert digits.image_shape == (8, 8, 1)
    assert digits.num_classes == 10
    assert digits.classes == tuple("0123456789")


@pytest.mark.slow
def test_digits_need_no_tensorflow_and_delete_their_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    load_dataset("digits")
    assert "tensorflow" not in sys.modules
    assert list(tmp_path.iterdir()) == []


def test_digits_without_a_writable_temporary_folder_raise(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(UserError, match="cannot write the digits"):
        load_dataset("digits")


@pytest.mark.slow
def test_importing_data_does_not_import_tfds_or_grain():
    code = "import sys, resflax.data; print({'tensorflow_datasets', 'grain'} & {*sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "set()\n"


def test_tfds_dataset_loads_by_name(tmp_path):
    stripes = load_dataset("stripes", prepare_stripes(tmp_path))
    assert (len(stripes.train), len(stripes.test)) == (5, 3)
    assert (stripes.image_shape, stripes.num_classes) == ((4, 6, 3), 3)
    assert stripes.classes == ("a", "b", "c")
    np.testing.assert_array_equal(stripes.train.labels, stripes.train.images[:, 0, 0, 0] % 3)
    assert stripes.train.images.dtype == np.uint8


def test_tfds_dataset_loads_by_name_and_version(tmp_path):
    assert len(load_dataset("stripes:1.0.0", prepare_stripes(tmp_path)).train) == 5


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"counts": {"test": 5}}, "has the splits test, no training split: choose one with"),
        (
            {"size": lambda i: (4 + i, 6)},
            r"stripes, train\[\d\]: has 6x\d pixels, but the first image has",
        ),
    ],
)
def test_unusable_tfds_dataset_raises(tmp_path, attributes, message):
    with pytest.raises(UserError, match=message):
        load_dataset("stripes", prepare_stripes(tmp_path, **attributes))


def test_tfds_training_split_of_one_class_raises(tmp_path):
    directory = prepare_stripes(tmp_path)
    splits = SplitChoice(train="train[:1]", test="validation")
    with pytest.raises(UserError, match=r"train\[:1\]: all 1 examples have the class '[abc]': exp"):
        load_dataset("stripes", directory, splits=splits)


def test_classes_that_differ_in_case_are_named(tmp_path):
    files = {f"train/{name}/{i}.png": constant_image(i) for name in ("Cat", "cat") for i in (1, 2)}
    note = load_dataset(write_folder(tmp_path, files)).note
    assert note.endswith("\nthe classes 'Cat' and 'cat' differ only in case or spaces")


def test_empty_tfds_split_raises(tmp_path):
    """TFDS writes no empty split, but a prepared folder may contain one."""
    data_dir = prepare_stripes(tmp_path)
    info = tmp_path / "stripes" / "1.0.0" / "dataset_info.json"
    text = json.loads(info.read_text())
    text["splits"][1]["shardLengths"] = ["0"]
    info.write_text(json.dumps(text))
    with pytest.raises(UserError, match="validation split of dataset 'stripes' is empty"):
        load_dataset("stripes", data_dir)


def test_tfrecord_dataset_raises_with_the_prepare_command(tmp_path):
    data_dir = prepare_stripes(tmp_path)
    info = tmp_path / "stripes" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    command = "`resflax data prepare stripes --data_dir=FOLDER`"
    with pytest.raises(UserError, match=f"prepared as tfrecord.*in another folder with {command}"):
        load_dataset("stripes", data_dir)


def test_missing_manual_archive_raises_instead_of_downloading(tmp_path):
    url = "https://example.com/files/stripes.zip"
    attributes = {"_split_generators": lambda self, dl_manager: dl_manager.download(url)}
    builder = stripes_builder(tmp_path, **attributes)
    forbid_downloads(builder, "archives")
    with pytest.raises(UserError, match=f"archives has no stripes.zip: download {url}"):
        builder.download_and_prepare()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fashion_mnist", "is not prepared in .*: prepare it .*resflax data prepare fashion_mnist"),
        ("fashion_mnits", "unknown dataset 'fashion_mnits': did you mean fashion_mnist"),
        ("", "unknown dataset ''"),
        ("../etc", "unknown dataset"),
    ],
)
def test_missing_dataset_raises_one_line(tmp_path, name, message):
    with pytest.raises(UserError, match=message) as e:
        load_dataset(name, str(tmp_path))
    assert "\n" not in str(e.value)


def test_mean_std_are_those_of_the_pixels():
    images = np.random.default_rng(0).integers(0, 256, (7, 5, 4, 3), np.uint8)
    mean, std = InMemorySplit(images, np.zeros(7, np.int32)).mean_std()
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), rtol=1e-9)


def test_std_of_a_constant_channel_is_not_zero():
    _, std = InMemorySplit(np.zeros((2, 2, 2, 1), np.uint8), np.zeros(2, np.int32)).mean_std()
    assert std == (1 / 255,)
