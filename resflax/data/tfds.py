"""Prepared TensorFlow Datasets, read with random access, without TensorFlow or the network.

TFDS decodes with NumPy and Pillow. Here it returns the encoded bytes, which `decode` decodes.
"""

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from tensorflow_datasets.core import read_only_builder

from resflax.data.decode import BadExampleError, decode
from resflax.data.digits import Digits
from resflax.data.fingerprint import Fingerprint, examples_fingerprint
from resflax.errors import UserError, unknown
from resflax.files import expand_path

PREPARE = "resflax data prepare"


class TfdsSource:
    """One split of a prepared TFDS dataset (see `Source`)."""

    def __init__(self, name: str, builder: tfds.core.DatasetBuilder, split: str) -> None:
        self.name = f"{name}, {split}"
        self.image = _only_feature(name, builder, tfds.features.Image)
        self.label = _only_feature(name, builder, tfds.features.ClassLabel)
        feature = builder.info.features[self.label]
        self.classes = tuple(feature.names or map(str, range(feature.num_classes)))
        self.has_file_names = "file_name" in builder.info.features
        self.problems: list[str] = []
        self.version = str(builder.info.version)
        dtype = np.dtype(builder.info.features[self.image].np_dtype)
        if dtype not in (np.uint8, np.uint16):  # TFDS encodes float32 as if it were RGBA
            raise UserError(f"dataset {name!r} has {dtype} images: expected uint8 or uint16")
        if not builder.info.splits[split].num_examples:
            raise UserError(f"the {split} split of dataset {name!r} is empty")
        try:
            self.data = builder.as_data_source(
                split=split, decoders={self.image: tfds.decode.SkipDecoding()}
            )
        except NotImplementedError:
            # TFDS does not convert a dataset that is already prepared in the same folder.
            raise UserError(
                f"dataset {name!r} is prepared as {builder.info.file_format.value}, which has no"
                f" random access: prepare it in another folder with `{PREPARE} {shlex.quote(name)}"
                " --data_dir=FOLDER`, and pass --config.data.data_dir=FOLDER"
            ) from None

    def __len__(self) -> int:
        return len(self.data)

    def location(self, index: int) -> str:
        """Returns the split and index of an example."""
        return f"{self.name}[{index}]"

    def file_name(self, index: int) -> str:
        """Returns the "file_name" of an example, as ImageNet has it; "" without such a feature."""
        example: Any = self.data[index] if self.has_file_names else {}
        name = example.get("file_name", b"")
        return name.decode() if isinstance(name, bytes) else str(name)

    def labels(self) -> None:
        """Returns None: the labels are known only after reading the examples."""

    def read(
        self, index: int, channels: int = 0
    ) -> tuple[UInt8[np.ndarray, "height width channels"], int]:
        """Returns the pixels and the label of an example."""
        example: Any = self.data[index]
        label, location = int(example[self.label]), self.location(index)
        if not 0 <= label < len(self.classes):
            raise BadExampleError(
                location, f"has label {label}: expected from 0 to {len(self.classes) - 1}"
            )
        return decode(example[self.image], location, channels), label

    def fingerprint(self) -> Fingerprint:
        """Returns the dataset's version and what `examples_fingerprint` does."""

        def read(index: int) -> tuple[bytes, int]:
            example: Any = self.data[index]
            return bytes(example[self.image]), int(example[self.label])

        return examples_fingerprint(len(self), read) | {"version": self.version}


def open_prepared(name: str, data_dir: str) -> tuple[TfdsSource, TfdsSource]:
    """Opens the training and the test split of a prepared dataset by name."""
    return open_splits(name, _find_builder(name, data_dir))


def open_splits(name: str, builder: tfds.core.DatasetBuilder) -> tuple[TfdsSource, TfdsSource]:
    """Opens the splits "train" and "test" of a builder, or "validation" if it has no "test"."""
    splits = builder.info.splits
    test = _test_split(name, builder)
    if "train" not in splits or not test:
        raise UserError(f"dataset {name!r} has the splits {sorted(splits)}: expected train, test")
    return TfdsSource(name, builder, "train"), TfdsSource(name, builder, test)


def open_prepared_split(name: str, data_dir: str, split: str) -> TfdsSource:
    """Opens one split of a prepared dataset; "" is the test split of `open_splits`."""
    return open_builder_split(name, _find_builder(name, data_dir), split)


def open_builder_split(name: str, builder: tfds.core.DatasetBuilder, split: str) -> TfdsSource:
    """Opens one split of a builder; "" is the test split of `open_splits`."""
    splits = sorted(builder.info.splits)
    chosen = split or _test_split(name, builder)
    if not chosen:
        raise UserError(f"dataset {name!r} has the splits {splits}: expected test; choose a split")
    if chosen not in splits:
        raise unknown("split", split, splits)
    return TfdsSource(name, builder, chosen)


def _test_split(name: str, builder: tfds.core.DatasetBuilder) -> str:
    """Returns "test", or "validation" if there is no "test"; "" if there is neither."""
    if name.split(":")[0] == "imagenet2012":
        return "validation"  # the test split has no labels
    return next((name for name in ("test", "validation") if name in builder.info.splits), "")


def _find_builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """Finds a prepared dataset by its files only, without dataset code or network access."""
    expand_path(name, "dataset")  # a URL, or ~/images without folder:
    data_dir = expand_path(data_dir, "data_dir")
    try:
        return read_only_builder.builder_from_files(name, data_dir=data_dir or None)
    except (tfds.core.DatasetNotFoundError, ValueError, OSError):
        pass
    known = set(tfds.list_builders(with_community_datasets=False)) - {Digits.name}
    if name.split(":")[0].split("/")[0] not in known:
        if Path(name).is_dir():
            raise UserError(f"unknown dataset {name!r}: the folder of this name is folder:{name}")
        raise unknown("dataset", name, [Digits.name, "folder:PATH", *sorted(known)])
    folder = data_dir or tfds.core.constants.DATA_DIR
    flag = f" --data_dir={shlex.quote(str(folder))}" if data_dir else ""
    raise UserError(
        f"dataset {name!r} is not prepared in {folder}: prepare it once, where TensorFlow is"
        f" installed, with `{PREPARE} {shlex.quote(name)}{flag}`"
    )


def _only_feature(name: str, builder: tfds.core.DatasetBuilder, feature_type: type) -> str:
    """Returns the name of the only feature of that type."""
    features = builder.info.features
    names = [key for key, feature in features.items() if isinstance(feature, feature_type)]
    if len(names) != 1:
        raise UserError(
            f"dataset {name!r} has the features {sorted(features)}: expected one of type"
            f" {feature_type.__name__}, found {len(names)}"
        )
    return names[0]
