"""Sets that TensorFlow Datasets has prepared as array_record, read at random without TensorFlow.

TFDS decodes with NumPy and Pillow; here it hands over the encoded bytes. Nothing touches the
network.
"""

import shlex
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from resflax.data.decode import BadExampleError, decode
from resflax.data.digits import Digits
from resflax.errors import UserError, unknown


class PreparedSource:
    """A split of a prepared set (see `Source`)."""

    def __init__(self, name: str, builder: tfds.core.DatasetBuilder, split: str) -> None:
        self.name = f"{name}, {split}"
        self.image = _feature(name, builder, tfds.features.Image)
        self.label = _feature(name, builder, tfds.features.ClassLabel)
        feature = builder.info.features[self.label]
        self.classes = tuple(feature.names or map(str, range(feature.num_classes)))
        if builder.info.features[self.image].np_dtype != np.uint8:
            raise UserError(f"dataset {name!r} has images of more than 8 bits: expected uint8")
        if not builder.info.splits[split].num_examples:
            raise UserError(f"the {split} split of dataset {name!r} is empty")
        try:
            self.data = builder.as_data_source(
                split=split, decoders={self.image: tfds.decode.SkipDecoding()}
            )
        except NotImplementedError:
            raise UserError(
                f"dataset {name!r} is prepared as {builder.info.file_format.value}, which cannot be"
                " read at random: prepare it with --file_format=array_record"
            ) from None

    def __len__(self) -> int:
        return len(self.data)

    def where(self, index: int) -> str:
        """What to call an example."""
        return f"{self.name}[{index}]"

    def read(self, index: int, channels: int = 0) -> tuple[np.ndarray, int]:
        """Pixels and label of an example."""
        example: Any = self.data[index]
        label = int(example[self.label])
        if not 0 <= label < len(self.classes):
            raise BadExampleError(
                self.where(index), f"has label {label} of {len(self.classes)} classes"
            )
        return decode(example[self.image], self.where(index), channels), label


def open_prepared(name: str, data_dir: str) -> tuple[PreparedSource, PreparedSource]:
    """The training and the test split of a set, by its name."""
    return splits_of(name, _find(name, data_dir))


def splits_of(
    name: str, builder: tfds.core.DatasetBuilder
) -> tuple[PreparedSource, PreparedSource]:
    """The training and the test split of a builder; "validation" serves where there is no test."""
    splits = builder.info.splits
    test = next((split for split in ("test", "validation") if split in splits), "")
    # ImageNet's test split has no labels.
    test = "validation" if name.split(":")[0] == "imagenet2012" else test
    if "train" not in splits or not test:
        raise UserError(f"dataset {name!r} has the splits {sorted(splits)}: expected train, test")
    return PreparedSource(name, builder, "train"), PreparedSource(name, builder, test)


def _find(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """The prepared set of that name, found by its files alone: no builder's code, no network."""
    try:
        return read_only_builder.builder_from_files(name, data_dir=data_dir or None)
    except (tfds.core.DatasetNotFoundError, ValueError, OSError):
        pass
    stock = set(tfds.list_builders(with_community_datasets=False)) - {Digits.name}
    if name.split(":")[0].split("/")[0] not in stock:
        raise unknown("dataset", name, [Digits.name, "folder:PATH", *sorted(stock)])
    place = data_dir or tfds.core.constants.DATA_DIR
    where = f" --data_dir={shlex.quote(str(place))}" if data_dir else ""
    raise UserError(
        f"dataset {name!r} is not prepared in {place}: prepare it once, where TensorFlow is"
        f" installed, with `python -m resflax data prepare {shlex.quote(name)}{where}`"
    )


def _feature(name: str, builder: tfds.core.DatasetBuilder, kind: type) -> str:
    """The name of the one feature of that kind."""
    found = [key for key, value in builder.info.features.items() if isinstance(value, kind)]
    if len(found) != 1:
        raise UserError(
            f"dataset {name!r} has the features {sorted(builder.info.features)}:"
            f" expected one {kind.__name__}, found {len(found)}"
        )
    return found[0]
