import io
import json
import socket
import sys
import tempfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from resflax import UserError
from resflax.data import load_dataset
from resflax.data.in_memory import InMemorySplit


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def touched(*args, **kwargs):
        raise AssertionError("the network was touched")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, touched)
    monkeypatch.setattr(socket, "getaddrinfo", touched)


def test_digits_are_the_1797_images_that_scikit_learn_has():
    digits, reference = load_dataset("digits"), load_digits()
    images = np.concatenate([digits.train.images, digits.test.images])[..., 0]
    labels = np.concatenate([digits.train.labels, digits.test.labels])
    found = sorted(
        (i.tobytes(), int(k))
        for i, k in zip(np.rint(images / (255 / 16)).astype(np.uint8), labels, strict=True)
    )
    expected = sorted(
        (i.astype(np.uint8).tobytes(), int(k))
        for i, k in zip(reference.images, reference.target, strict=True)
    )
    assert found == expected
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    assert digits.image_shape == (8, 8, 1)
    assert digits.num_classes == 10


def test_digits_need_no_tensorflow_and_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    load_dataset("digits")
    assert "tensorflow" not in sys.modules
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_temporary_folder_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(UserError, match="cannot write the digits"):
        load_dataset("digits")


class Stripes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A stand-in for a stock set, with names and splits of its own."""

    VERSION = tfds.core.Version("1.0.0")
    shape, features, counts = (None, None, 3), ("picture", "kind"), {"train": 5, "validation": 3}
    size = staticmethod(lambda i: (4, 6))

    def _info(self):
        image, label = self.features
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    image: tfds.features.Image(shape=self.shape),
                    label: tfds.features.ClassLabel(names=["a", "b", "c"]),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(n) for split, n in self.counts.items()}

    def _generate_examples(self, n):
        for i in range(n):
            png = io.BytesIO()
            Image.fromarray(np.full((*type(self).size(i), 3), i, np.uint8)).save(png, "png")
            image, label = self.features
            yield i, {image: png.getvalue(), label: i % 3}


def prepare(tmp_path, file_format="array_record", **changes):
    cls = type("Stripes", (Stripes,), changes, skip_registration=True)
    cls(data_dir=tmp_path, file_format=file_format).download_and_prepare()
    return str(tmp_path)


def test_any_prepared_set_goes_by_its_name(tmp_path):
    stripes = load_dataset("stripes", prepare(tmp_path))
    assert (len(stripes.train), len(stripes.test)) == (5, 3)
    assert (stripes.image_shape, stripes.num_classes) == ((4, 6, 3), 3)
    np.testing.assert_array_equal(stripes.train.labels, stripes.train.images[:, 0, 0, 0] % 3)
    assert stripes.train.images.dtype == np.uint8


def test_a_version_can_be_named(tmp_path):
    assert len(load_dataset("stripes:1.0.0", prepare(tmp_path)).train) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": {"train": 5}}, r"has the splits \['train'\]: expected train, test"),
        (
            {"size": lambda i: (4 + i, 6)},
            r"stripes, train\[\d\]: is of shape .*, the first of",
        ),
    ],
)
def test_a_set_that_cannot_be_trained_on_is_named(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        load_dataset("stripes", prepare(tmp_path, **changes))


def test_an_empty_split_is_named(tmp_path):
    """TFDS writes none, but a prepared folder may hold one."""
    folder = prepare(tmp_path)
    info = tmp_path / "stripes" / "1.0.0" / "dataset_info.json"
    text = json.loads(info.read_text())
    text["splits"][1]["shardLengths"] = ["0"]
    info.write_text(json.dumps(text))
    with pytest.raises(UserError, match="validation split of dataset 'stripes' is empty"):
        load_dataset("stripes", folder)


def test_a_set_prepared_as_tfrecord_is_told_how_to_prepare_again(tmp_path):
    folder = prepare(tmp_path)
    info = tmp_path / "stripes" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="prepared as tfrecord.*--file_format=array_record"):
        load_dataset("stripes", folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fashion_mnist", "is not prepared in .*: prepare it .*resflax data prepare fashion_mnist"),
        ("fashion_mnits", "unknown dataset 'fashion_mnits': did you mean fashion_mnist"),
        ("", "unknown dataset ''"),
        ("../etc", "unknown dataset"),
    ],
)
def test_a_set_that_is_not_there_is_one_line(tmp_path, name, message):
    with pytest.raises(UserError, match=message) as e:
        load_dataset(name, str(tmp_path))
    assert "\n" not in str(e.value)


def test_moments_are_those_of_the_pixels():
    images = np.random.default_rng(0).integers(0, 256, (7, 5, 4, 3), np.uint8)
    mean, std = InMemorySplit(images, np.zeros(7, np.int32)).mean_std()
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), rtol=1e-9)


def test_a_constant_channel_has_no_zero_deviation():
    _, std = InMemorySplit(np.zeros((2, 2, 2, 1), np.uint8), np.zeros(2, np.int32)).mean_std()
    assert std == (1 / 255,)
