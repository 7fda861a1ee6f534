"""Any image-classification set of TensorFlow Datasets, by name, without TensorFlow.

TFDS reads sets that are prepared as array_record at random and decodes them with NumPy and
Pillow. Nothing here touches the network.
"""

import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from resflax.data.digits import Digits, prepared
from resflax.errors import UserError, unknown


@dataclass(frozen=True)
class Examples:
    """One split in memory.

    Attributes:
      images: uint8 `(n, height, width, channels)`.
      labels: int32 `(n,)`, each in `range(num_classes)`.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, of pixels scaled to [0, 1]."""
        counts = np.stack(
            [np.bincount(c.ravel(), minlength=256) for c in np.moveaxis(self.images, -1, 0)]
        )
        value = np.arange(256) / 255
        mean = counts @ value / counts.sum(1)
        std = np.sqrt(counts @ value**2 / counts.sum(1) - mean**2)
        return tuple(mean.tolist()), tuple(np.maximum(std, 1 / 255).tolist())


@dataclass(frozen=True)
class Dataset:
    """A training and a test split of the same classes and image shape."""

    name: str
    train: Examples
    test: Examples
    num_classes: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels


def load_dataset(name: str, data_dir: str = "") -> Dataset:
    """Reads a prepared set into memory; "digits" is embedded and needs no preparing.

    Args:
      name: as TFDS spells it: "digits", "fashion_mnist", "emnist/letters", "mnist:3.*.*".
      data_dir: where prepared sets lie; "" is TFDS's own choice (`$TFDS_DATA_DIR`, else
        `~/tensorflow_datasets`).

    Raises:
      UserError: if there is no such set, it is not prepared, or it is not of fixed-size images
        with one label each.
    """
    if name == Digits.name:
        try:
            with prepared() as builder:
                return _read(name, builder)
        except OSError as e:
            raise UserError(f"cannot write the digits to a temporary folder: {e}") from e
    return _read(name, _find(name, data_dir))


def _find(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """The prepared set of that name, found by its files alone: no builder's code, no network."""
    try:
        return read_only_builder.builder_from_files(name, data_dir=data_dir or None)
    except (tfds.core.DatasetNotFoundError, ValueError, OSError):
        pass
    stock = set(tfds.list_builders(with_community_datasets=False)) - {Digits.name}
    if name.split(":")[0].split("/")[0] not in stock:
        raise unknown("dataset", name, [Digits.name, *sorted(stock)])
    place = data_dir or tfds.core.constants.DATA_DIR
    raise UserError(
        f"dataset {name!r} is not prepared in {place}: prepare it where TensorFlow is installed,"
        f" with `tfds build {shlex.quote(name)} --file_format=array_record"
        f" --data_dir={shlex.quote(place)}`"
    )


def _told(count: int, what: str, every: float = 5.0) -> Iterator[int]:
    """`range(count)`, telling how far it is and what is left if it takes longer than `every` s."""
    began = told = time.monotonic()
    for i in range(count):
        if time.monotonic() - told >= every:
            told = time.monotonic()
            left = (told - began) / i * (count - i)
            print(f"{what}: {i:,} of {count:,}, {left:.0f} s left", flush=True)
        yield i


def _feature(name: str, builder: tfds.core.DatasetBuilder, kind: type) -> str:
    """The name of the one feature of that kind."""
    found = [key for key, value in builder.info.features.items() if isinstance(value, kind)]
    if len(found) != 1:
        raise UserError(
            f"dataset {name!r} has the features {sorted(builder.info.features)}:"
            f" expected one {kind.__name__}, found {len(found)}"
        )
    return found[0]


def _read(name: str, builder: tfds.core.DatasetBuilder) -> Dataset:
    image = _feature(name, builder, tfds.features.Image)
    label = _feature(name, builder, tfds.features.ClassLabel)
    features, splits = builder.info.features, builder.info.splits
    test = next((split for split in ("test", "validation") if split in splits), "")
    if "train" not in splits or not test:
        raise UserError(f"dataset {name!r} has the splits {sorted(splits)}: expected train, test")
    if None in features[image].shape or features[image].np_dtype != np.uint8:
        raise UserError(
            f"dataset {name!r} has images of {features[image].shape}, {features[image].np_dtype}:"
            " expected uint8 of one fixed size"
        )

    def read(split: str) -> Examples:
        if not splits[split].num_examples:
            raise UserError(f"the {split} split of dataset {name!r} is empty")
        try:
            source = builder.as_data_source(split=split)
        except NotImplementedError:
            raise UserError(
                f"dataset {name!r} is prepared as {builder.info.file_format.value}, which cannot be"
                " read at random: prepare it with --file_format=array_record"
            ) from None
        images = np.empty((len(source), *features[image].shape), np.uint8)
        labels = np.empty(len(source), np.int32)
        for i in _told(len(source), f"reading {name}, {split}"):
            example = source[i]
            images[i], labels[i] = example[image], example[label]
        return Examples(images, labels)

    return Dataset(name, read("train"), read(test), features[label].num_classes)
