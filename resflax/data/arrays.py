"""Datasets of arrays, `npz:PATH`: signals, images or volumes with one label each.

PATH is an .npz file or a folder of .npy files with the arrays `x_train`, `y_train`, `x_test`,
`y_test` and, if there is one, a validation split, under these names or those of `VALUES` and
`LABELS` (`train_images`, `val_labels`, ...); or a folder with an .npy file per example,
`PATH/train/CLASS/*.npy`.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Num, Shaped

from resflax.data.array_files import Arrays, find_class_files, read_array, read_arrays
from resflax.data.array_source import ArraySource
from resflax.data.in_memory import InMemorySplit
from resflax.data.location import Location
from resflax.data.named_splits import default_split
from resflax.data.source import SplitSources, check_two_classes
from resflax.data.split_names import role_of_split, splits_by_name
from resflax.errors import UserError, quantity, unknown
from resflax.files import user_path

VALUES = ("x", "images", "image", "signals", "signal", "data", "inputs")
LABELS = ("y", "labels", "label", "targets", "target")
CLASS_NAMES = ("classes", "class_names", "label_names")
EXPECTED = "expected x_train, y_train, x_test and y_test"


class RawSplit(NamedTuple):
    """The examples of one split and their labels, which may be numbers or names."""

    values: Num[np.ndarray, " examples *shape"]
    labels: Shaped[np.ndarray, " examples"]


class ArrayDataset:
    """The splits of arrays on disk; see the module."""

    def __init__(self, location: Location) -> None:
        self.name, path = location.name, user_path(location.path, "dataset")
        if not path.exists():
            raise UserError(f"npz:{path} does not exist: expected an .npz file or a folder")
        is_folder = path.is_dir() and not any(path.glob("*.npy"))
        arrays: Arrays = {} if is_folder else read_arrays(path)
        self.raw, unused = (_read_class_folders(path), []) if is_folder else _by_split(path, arrays)
        names = next((arrays[key] for key in arrays if key.lower() in CLASS_NAMES), None)
        examples = next(iter(self.raw.values())).values
        notes = [f"{self.name}: {describe_values(examples)}"]
        self.note = "; ".join([*notes, f"not used: {', '.join(unused)}"] if unused else notes)
        self.class_names = None if names is None else [str(name) for name in names.ravel()]

    def open_splits(self, chosen: Mapping[str, str]) -> SplitSources:
        """Opens all splits; see `Splits`."""
        for name in chosen.values():
            if name not in self.raw:
                raise unknown("split", name, self.raw)
        names = splits_by_name(self.name, self.raw, chosen)
        classes = self._classes(names["train"])
        train, validation, test = (
            self._source(names[role], classes) if names[role] else None
            for role in ("train", "validation", "test")
        )
        assert train
        check_two_classes(train)
        self._check_dtypes([name for name in names.values() if name])
        return SplitSources(train, validation, test, names, self.note)

    def open_split(self, split: str) -> ArraySource:
        """Opens one split; see `Splits`."""
        sources = self.open_splits({})
        if not split:
            source: ArraySource = default_split(self.name, dict.fromkeys(self.raw, 0), sources)
            return source
        if split not in self.raw:
            raise unknown("split", split, self.raw)
        return self._source(split, self._classes(sources.names["train"]))

    def overlap(self, first: str, second: str) -> bool:
        """Returns whether two splits have common examples."""
        return first == second

    def _check_dtypes(self, names: Sequence[str]) -> None:
        """Raises `UserError` if one split is uint8, which is divided by 255, and another is not."""
        first, *others = names
        for other in others:
            pair = [self.raw[name].values.dtype for name in (first, other)]
            if pair[0] != pair[1]:
                raise UserError(
                    f"{self.name}: the split {first} is {pair[0]} and the split {other} is"
                    f" {pair[1]}, but only uint8 values are divided by 255: expected one dtype"
                )

    def _classes(self, train: str) -> list[str]:
        """Returns the class names: given ones, or the values of the training split's labels."""
        if self.class_names is None:
            return [str(label) for label in np.unique(self.raw[train].labels).tolist()]
        if len({*self.class_names}) < len(self.class_names):
            raise UserError(f"{self.name}: two classes have the same name: expected one name each")
        return self.class_names

    def _source(self, split: str, classes: list[str]) -> ArraySource:
        values, labels = self.raw[split]
        if self.class_names is not None and labels.dtype.kind in "iu":
            outside = labels[(labels < 0) | (labels >= len(classes))]
            if outside.size:
                raise UserError(
                    f"{self.name}: the split {split} has the label {outside[0]} and there are"
                    f" {len(classes)} class names: expected labels from 0 to {len(classes) - 1}"
                )
            indices = labels.astype(np.int32)
        else:
            position = {name: i for i, name in enumerate(classes)}
            present, inverse = np.unique(labels, return_inverse=True)
            for name in map(str, present.tolist()):
                if name not in position:
                    lacks = (
                        "no training example has" if self.class_names is None else "is not a class"
                    )
                    raise UserError(
                        f"{self.name}: the split {split} has the label {name}, which {lacks}:"
                        f" expected one of {', '.join(classes[:20])}"
                    )
            order = np.array([position[str(name)] for name in present.tolist()], np.int32)
            indices = order[inverse.ravel()]
        return ArraySource(f"{self.name}, {split}", InMemorySplit(values, indices), tuple(classes))


def _by_split(path: Path, arrays: Arrays) -> tuple[dict[str, RawSplit], list[str]]:
    """Returns the splits by name, and the names of arrays that are in none of them."""
    found: dict[str, dict[str, str]] = {}
    unused = []
    for key in arrays:
        split, kind = _parse_name(key)
        if kind:
            other = found.setdefault(split, {}).setdefault(kind, key)
            if other != key:
                raise UserError(
                    f"{path} has the arrays {other} and {key}, which could both be the {kind} of"
                    f" the {split} split: expected one"
                )
        elif key.lower() not in CLASS_NAMES:
            unused.append(key)
    if not found:
        names = ", ".join(arrays) or "no arrays"
        raise UserError(f"{path} has {names}: {EXPECTED}")
    splits = {}
    for split, kinds in found.items():
        for kind, usual in (("values", "x"), ("labels", "y")):
            if kind not in kinds:
                other = next(iter(kinds.values()))
                raise UserError(
                    f"{path} has {other} but no {kind} of the {split} split: expected"
                    f" {usual}_{split} as well"
                )
        x, y = kinds["values"], kinds["labels"]
        values, labels = _values(f"{x} in {path}", arrays[x]), _labels(f"{y} in {path}", arrays[y])
        if len(values) != len(labels):
            raise UserError(
                f"{path}: {x} has {len(values)} examples and {y} has {len(labels)} labels: expected"
                " one label per example"
            )
        splits[split] = RawSplit(values, labels)
    return splits, unused


def _parse_name(key: str) -> tuple[str, str]:
    """Returns the split and "values", "labels" or "" that the name of an array says.

    >>> _parse_name("x_train"), _parse_name("val_labels"), _parse_name("X"), _parse_name("ids")
    (('train', 'values'), ('val', 'labels'), ('train', 'values'), ('train', ''))
    """
    words = re.split(r"[_.-]", key.lower())
    split = next((word for word in words if role_of_split(word)), "")
    rest = "_".join(word for word in words if word != split)
    kind = "values" if rest in VALUES else "labels" if rest in LABELS else ""
    return split or "train", kind


def _values(name: str, array: np.ndarray) -> Num[np.ndarray, " examples *shape"]:
    """Returns examples with an axis of channels, uint8 or float32.

    Raises:
      UserError: if they are not numbers, not finite, or have the wrong rank.
    """
    if array.dtype.kind not in "uifb":
        raise UserError(f"{name} has the dtype {array.dtype}: expected integers or floats")
    if not 2 <= array.ndim <= 5 or not array.size:
        raise UserError(
            f"{name} has the shape {array.shape}: expected signals (n, length) or (n, length,"
            " channels), images (n, height, width, channels) or volumes (n, depth, height, width,"
            " channels)"
        )
    if array.dtype != np.uint8:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        _check_finite(name, array)
    # Signals of one channel and gray images may lack the axis.
    lacks_channels = array.ndim == 2 or (array.ndim == 3 and array.dtype == np.uint8)
    return array[..., None] if lacks_channels else array


def describe_values(values: Num[np.ndarray, " examples *shape"]) -> str:
    """Says what arrays are taken for, and how they are scaled.

    >>> describe_values(np.zeros((5, 28, 28), np.float32))
    'float32 signals of 28 steps and 28 channels, not scaled'
    >>> describe_values(np.zeros((5, 28, 28, 1), np.uint8))
    'uint8 images of 28x28 and 1 channel, divided by 255'
    """
    *space, channels = values.shape[1:]
    kind = {1: "signals", 2: "images", 3: "volumes"}[len(space)]
    size = "x".join(map(str, space)) + (" steps" if len(space) == 1 else "")
    scale = "divided by 255" if values.dtype == np.uint8 else "not scaled"
    return f"{values.dtype} {kind} of {size} and {quantity(channels, 'channel')}, {scale}"


def _check_finite(name: str, array: np.ndarray) -> None:
    """Raises `UserError` if an element is NaN, infinite, or too large for float32."""
    rows = np.isfinite(array).all(tuple(range(1, array.ndim)))
    if not rows.all():
        raise UserError(
            f"{name} has NaN or infinite values in {int((~rows).sum())} of {len(rows)} examples,"
            f" first in example {int(np.argmin(rows))}: remove or replace them"
        )


def _labels(name: str, array: np.ndarray) -> Shaped[np.ndarray, " examples"]:
    """Returns labels as integers or text.

    Raises:
      UserError: if there is not one label per example.
    """
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise UserError(
            f"{name} has the shape {array.shape}: expected one label per example, (n,); one-hot"
            " labels become that with .argmax(1)"
        )
    if array.dtype.kind == "f" and np.isfinite(array).all() and (array == np.rint(array)).all():
        array = array.astype(np.int64)
    if array.dtype.kind not in "uibU":
        raise UserError(f"{name} has the dtype {array.dtype}: expected integers or text")
    return array.astype(np.int64) if array.dtype.kind == "b" else array


def _read_class_folders(root: Path) -> dict[str, RawSplit]:
    """Returns the splits of `root/SPLIT/CLASS/*.npy`, or of `root/CLASS/*.npy`, by name."""
    folders = [path for path in sorted(root.iterdir()) if path.is_dir()]
    roots = {path.name: path for path in folders if role_of_split(path.name)} or {"train": root}
    splits = {}
    for name, folder in roots.items():
        files = find_class_files(folder)
        if not files:
            raise UserError(
                f"{folder} has no .npy files in class folders: expected {folder}/CLASS/NAME.npy, or"
                f" the arrays x_train.npy and y_train.npy in {root}"
            )
        examples = [read_array(file) for _, file in files]
        for (_, file), example in zip(files, examples, strict=True):
            if example.shape != examples[0].shape:
                raise UserError(
                    f"{file} has the shape {example.shape}, but {files[0][1]} has"
                    f" {examples[0].shape}: expected one shape"
                )
        labels = np.array([label for label, _ in files])
        splits[name] = RawSplit(_values(f"the split {name} of {root}", np.stack(examples)), labels)
    return splits
