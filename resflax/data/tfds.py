"""Prepared TensorFlow Datasets, read with random access, without TensorFlow or the network.

TFDS decodes with NumPy and Pillow. Here it returns the encoded bytes, which `decode` decodes.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int, UInt8
from tensorflow_datasets.core import read_only_builder

from resflax.data.decode import BadExampleError, decode
from resflax.data.digits import Digits
from resflax.data.fingerprint import Fingerprint, evenly_spaced, examples_fingerprint
from resflax.data.location import DEFAULT_KEYS, FeatureKeys
from resflax.data.named_splits import default_split, open_named_splits
from resflax.data.source import SplitSources, check_two_classes
from resflax.data.split_expressions import overlap, parse_expression
from resflax.errors import UserError, unknown
from resflax.files import expand_path
from resflax.progress import progress_range

PREPARE = "resflax data prepare"
FEATURE_TYPES = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
# Largest split whose labels are read before the examples: 0.2 ms for each.
MAX_LABELS_READ = 100_000
LABEL_SAMPLE_SIZE = 64


class TfdsSource:
    """One split of a prepared TFDS dataset (see `Source`).

    Args:
      name: name of the dataset.
      builder: its builder.
      split: a split or an expression, see `parse_expression`.
      keys: names of image and label; by default, of the only features of their types, or of those
        in the dataset's `supervised_keys`.

    Raises:
      UserError: if image and label are not known.
    """

    def __init__(
        self,
        name: str,
        builder: tfds.core.DatasetBuilder,
        split: str,
        keys: FeatureKeys = DEFAULT_KEYS,
    ) -> None:
        self.name = f"{name}, {split}"
        self.image = _choose_feature(name, builder, "image", keys.image)
        self.label = _choose_feature(name, builder, "label", keys.label)
        feature = builder.info.features[self.label]
        self.classes = tuple(feature.names or map(str, range(feature.num_classes)))
        self.has_file_names = "file_name" in builder.info.features
        self.problems: list[str] = []
        self._labels: Int[np.ndarray, " examples"] | None = None
        self.version = str(builder.info.version)
        dtype = np.dtype(builder.info.features[self.image].np_dtype)
        if dtype not in (np.uint8, np.uint16):  # TFDS encodes float32 as if it were RGBA
            raise UserError(f"dataset {name!r} has {dtype} images: expected uint8 or uint16")
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

    @property
    def has_labels(self) -> bool:
        """Whether the first example has a label: not -1, as in the test split of ImageNet."""
        return int(self.data[0][self.label]) >= 0

    def has_same_label(self) -> bool:
        """Returns whether all of some evenly spaced examples have the same label."""
        sample = evenly_spaced(len(self), LABEL_SAMPLE_SIZE)
        return len({int(self.data[i][self.label]) for i in sample}) == 1

    def location(self, index: int) -> str:
        """Returns the split and index of an example."""
        return f"{self.name}[{index}]"

    def file_name(self, index: int) -> str:
        """Returns the "file_name" of an example, as ImageNet has it; "" without such a feature."""
        example: Any = self.data[index] if self.has_file_names else {}
        name = example.get("file_name", b"")
        return name.decode() if isinstance(name, bytes) else str(name)

    def read(
        self, index: int, channels: int = 0
    ) -> tuple[UInt8[np.ndarray, "height width channels"], int]:
        """Returns the pixels and the label of an example."""
        example, location = self.data[index], self.location(index)
        label = int(example[self.label])
        if not 0 <= label < len(self.classes):
            raise BadExampleError(
                location, f"has label {label}: expected from 0 to {len(self.classes) - 1}"
            )
        return decode(example[self.image], location, channels), label

    def labels(self) -> Int[np.ndarray, " examples"] | None:
        """Returns the label of each example; None if one is invalid, or there are too many.

        All examples are read, once, up to `MAX_LABELS_READ`; the images are not decoded.
        """
        if self._labels is None and len(self) <= MAX_LABELS_READ:
            steps = progress_range(len(self), f"reading labels of {self.name}")
            self._labels = np.array([int(self.data[i][self.label]) for i in steps])
        known = self._labels is not None and np.isin(self._labels, np.arange(len(self.classes)))
        return self._labels if np.all(known) else None

    def fingerprint(self) -> Fingerprint:
        """Returns the dataset's version and what `examples_fingerprint` does."""

        def read(index: int) -> tuple[bytes, int]:
            example: Any = self.data[index]
            return bytes(example[self.image]), int(example[self.label])

        return examples_fingerprint(len(self), read) | {"version": self.version}


class TfdsDataset:
    """A prepared dataset.

    Args:
      name: name of the dataset.
      builder: its builder.
      keys: names of image and label; see `TfdsSource`.
    """

    def __init__(
        self, name: str, builder: tfds.core.DatasetBuilder, keys: FeatureKeys = DEFAULT_KEYS
    ) -> None:
        self.name, self._builder, self._keys = name, builder, keys
        self._lengths = {key: info.num_examples for key, info in builder.info.splits.items()}

    def open_splits(self, chosen: Mapping[str, str]) -> SplitSources:
        """Opens the splits; see `open_named_splits`."""
        sources = open_named_splits(
            self.name, self._lengths, chosen, lambda split, _: self._open(split)
        )
        assert isinstance(sources.train, TfdsSource)
        if sources.train.has_same_label():
            check_two_classes(sources.train)
        return sources

    def open_split(self, split: str) -> TfdsSource:
        """Opens one split or expression; "" is the test split, or else the validation split."""
        if split:
            return self._open(split)
        return default_split(self.name, self._lengths, self.open_splits({}))

    def overlap(self, first: str, second: str) -> bool:
        """Returns whether two splits have common examples."""
        return overlap(self.name, first, second, self._lengths)

    def _open(self, split: str) -> TfdsSource:
        if split in self._lengths and not self._lengths[split]:
            raise UserError(f"the {split} split of dataset {self.name!r} is empty")
        parse_expression(self.name, split, self._lengths)
        return TfdsSource(self.name, self._builder, split, self._keys)


def find_builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
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
        raise unknown(
            "dataset", name, [Digits.name, "folder:PATH", "csv:FILE", "hf:PATH", *sorted(known)]
        )
    folder = data_dir or tfds.core.constants.DATA_DIR
    flag = f" --data_dir={shlex.quote(str(folder))}" if data_dir else ""
    raise UserError(
        f"dataset {name!r} is not prepared in {folder}: prepare it once, where TensorFlow is"
        f" installed, with `{PREPARE} {shlex.quote(name)}{flag}`"
    )


def _choose_feature(name: str, builder: tfds.core.DatasetBuilder, kind: str, chosen: str) -> str:
    """Returns the name of the image or of the label in the examples; see `TfdsSource`."""
    features, feature_type = builder.info.features, FEATURE_TYPES[kind]
    names = [key for key, feature in features.items() if isinstance(feature, feature_type)]
    if chosen in names:
        return chosen
    if chosen:
        raise UserError(
            f"config.data.{kind}_key is {chosen!r}, which is not a feature of type"
            f" {feature_type.__name__} of dataset {name!r}: expected one of"
            f" {', '.join(sorted(names)) or '(none)'}"
        )
    if not names:
        raise UserError(
            f"dataset {name!r} has the features {sorted(features)}: expected one of type"
            f" {feature_type.__name__}, found 0"
        )
    keys = builder.info.supervised_keys or ("", "")
    supervised = keys[("image", "label").index(kind)]
    if len(names) > 1 and supervised not in names:
        raise UserError(
            f"dataset {name!r} has several features of type {feature_type.__name__},"
            f" {', '.join(sorted(names))}: choose one with --config.data.{kind}_key={names[0]}"
            f" (evaluate: --{kind}-key)"
        )
    return names[0] if len(names) == 1 else str(supervised)
