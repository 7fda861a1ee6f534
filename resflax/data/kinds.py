"""Kinds of datasets, as a table: how the splits of each kind are opened."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from resflax.data.array_source import ArraySource
from resflax.data.arrays import ArrayDataset
from resflax.data.ecg import CLASSES as ECG_CLASSES
from resflax.data.ecg import make_ecg
from resflax.data.fake import make_fake_split
from resflax.data.folder import open_folder, open_folder_split
from resflax.data.hf import HfDataset
from resflax.data.in_memory import read_all
from resflax.data.location import DEFAULT_KEYS, Location
from resflax.data.source import Source, SplitSources
from resflax.data.split_expressions import overlap
from resflax.data.table import open_table, open_table_split
from resflax.errors import UserError
from resflax.files import user_path

FOLDER_PREFIX = "folder:"
DIGITS_LENGTHS = {"train": 1437, "test": 360}


class Splits(Protocol):
    """The splits of a dataset, before they are opened."""

    def open_splits(self, chosen: Mapping[str, str]) -> SplitSources:
        """Opens all splits, with names that are given for "train", "validation" or "test"."""
        ...

    def open_split(self, split: str) -> Source:
        """Opens one split; "" is the test split, or else the validation split."""
        ...

    def overlap(self, first: str, second: str) -> bool:
        """Returns whether two splits have common examples."""
        ...


class Kind(NamedTuple):
    """A row of `KINDS`.

    Attributes:
      find: finds a dataset.
      is_in_memory: whether the images are read into memory as they are, of one size.
      has_keys: whether images and labels have names.
      has_path: whether the name has the path of files that TFDS did not prepare.
    """

    find: Callable[[Location], Splits]
    is_in_memory: bool = False
    has_keys: bool = False
    has_path: bool = False


def kind_of(name: str) -> Kind:
    """Returns the kind of a dataset by its name."""
    prefix, colon, _ = name.partition(":")
    return KINDS.get(name) or KINDS.get(prefix + colon if colon else "") or KINDS[""]


def open_splits(location: Location, chosen: Mapping[str, str]) -> SplitSources:
    """Opens the splits of a dataset.

    Args:
      location: the dataset.
      chosen: splits that are given for some of "train", "validation" and "test"; "" is none.

    Raises:
      UserError: if there is no training split, a split cannot be opened, or two given splits have
        common examples.
    """
    chosen = {role: name for role, name in chosen.items() if name}
    with _errors_of(location):
        splits = _find(location)
        sources = splits.open_splits(chosen)
    names = dict(sources.names)
    for role in ("validation", "test"):
        others = [r for r in names if r != role and names[r] and (r in chosen or r == "train")]
        common = [r for r in others if names[role] and splits.overlap(names[role], names[r])]
        if common and role in chosen:
            raise UserError(
                f"the {role} split {names[role]!r} and the {common[0]} split"
                f" {names[common[0]]!r} of {location.name} have common examples: choose both, with"
                f" --config.data.{common[0]}_split and --config.data.{role}_split"
            )
        if common:  # a split of another name was chosen from these examples
            names[role] = ""
    return sources._replace(
        validation=sources.validation if names["validation"] else None,
        test=sources.test if names["test"] else None,
        names=names,
    )


def open_split(location: Location, split: str) -> Source:
    """Opens one split of a dataset; "" is the test split, or else the validation split.

    Raises:
      UserError: if it cannot be opened.
    """
    with _errors_of(location):
        return _find(location).open_split(split)


def _find(location: Location) -> Splits:
    """Finds a dataset; raises `UserError` if it does not exist, or its keys have no effect."""
    kind = kind_of(location.name)
    if location.keys != DEFAULT_KEYS and not kind.has_keys:
        raise UserError(
            "config.data.image_key and config.data.label_key have no effect on"
            f" {location.name}, whose images and labels have no names: leave them out"
        )
    return kind.find(location)


def _errors_of(location: Location) -> contextlib.AbstractContextManager[None]:
    if kind_of(location.name).has_path:
        return folder_errors_as_user_error(location.path)
    return contextlib.nullcontext()


@contextlib.contextmanager
def folder_errors_as_user_error(path: str) -> Iterator[None]:
    """Turns errors while listing a folder into a `UserError` of one line."""
    try:
        yield
    except (OSError, RuntimeError) as e:  # no permission, name too long, unknown ~user
        folder, reason = getattr(e, "filename", None) or path, getattr(e, "strerror", None) or e
        raise UserError(f"cannot read the folder {str(folder)!r}: {reason}") from e


class _Folder:
    """The splits of a folder of images."""

    def __init__(self, location: Location) -> None:
        self._root, self._on_bad_example = _path(location), location.on_bad_example

    def open_splits(self, chosen: Mapping[str, str]) -> SplitSources:
        return open_folder(self._root, self._on_bad_example, chosen)

    def open_split(self, split: str) -> Source:
        return open_folder_split(self._root, split, self._on_bad_example)

    def overlap(self, first: str, second: str) -> bool:
        paths = [Path(os.path.realpath(self._root / name)) for name in (first, second)]
        return paths[0].is_relative_to(paths[1]) or paths[1].is_relative_to(paths[0])


class _Table:
    """The splits of a table of image files."""

    def __init__(self, location: Location) -> None:
        self._file, self._on_bad_example = _path(location), location.on_bad_example

    def open_splits(self, chosen: Mapping[str, str]) -> SplitSources:
        return open_table(self._file, self._on_bad_example, chosen)

    def open_split(self, split: str) -> Source:
        return open_table_split(self._file, split, self._on_bad_example)

    def overlap(self, first: str, second: str) -> bool:
        return first == second


class _Digits:
    """The splits of the included digits, which are read into memory."""

    def __init__(self, location: Location) -> None:
        del location

    def open_splits(self, chosen: Mapping[str, str]) -> SplitSources:
        with _prepared_digits() as dataset:
            sources = dataset.open_splits(chosen)
            validation, test = (s and _read(s) for s in (sources.validation, sources.test))
            return SplitSources(_read(sources.train), validation, test, sources.names, "")

    def open_split(self, split: str) -> Source:
        with _prepared_digits() as dataset:
            return _read(dataset.open_split(split))

    def overlap(self, first: str, second: str) -> bool:
        return overlap("digits", first, second, DIGITS_LENGTHS)


class _Generated:
    """The splits of a generated dataset: noise, or synthetic signals."""

    def __init__(self, location: Location) -> None:
        self._name, self._seed = location.name, location.seed

    def open_splits(self, chosen: Mapping[str, str]) -> SplitSources:
        names = {"train": "train", "validation": "", "test": "test"} | dict(chosen)
        validation, test = (
            self.open_split(names[role]) if names[role] else None for role in ("validation", "test")
        )
        return SplitSources(self.open_split(names["train"]), validation, test, names, "")

    def open_split(self, split: str) -> Source:
        split = split or "test"
        if self._name == "ecg":
            return ArraySource(f"ecg, {split}", make_ecg(split), ECG_CLASSES)
        noise, classes = make_fake_split(self._name, self._seed, split)
        return ArraySource(f"{self._name}, {split}", noise, classes)

    def overlap(self, first: str, second: str) -> bool:
        return first == second


def _find_hf(location: Location) -> Splits:
    return HfDataset(location.name, _path(location), location.keys)


def _find_tfds(location: Location) -> Splits:
    from resflax.data.tfds import TfdsDataset, find_builder  # imports TFDS: 0.3 s

    builder = find_builder(location.name, location.data_dir)
    return TfdsDataset(location.name, builder, location.keys)


def _path(location: Location) -> Path:
    return user_path(location.path, "dataset")


@contextlib.contextmanager
def _prepared_digits() -> Iterator[Any]:
    from resflax.data.digits import prepared_digits  # imports TFDS: 0.3 s
    from resflax.data.tfds import TfdsDataset

    try:
        with prepared_digits() as builder:
            yield TfdsDataset("digits", builder)
    except OSError as e:
        raise UserError(f"cannot write the digits to a temporary folder: {e}") from e


def _read(source: Source) -> Any:
    return ArraySource(source.name, read_all(source), source.classes)


# By name, or by prefix; the row "" is that of all other names.
KINDS = {
    "digits": Kind(_Digits, is_in_memory=True),
    "ecg": Kind(_Generated, is_in_memory=True),
    "fake": Kind(_Generated, is_in_memory=True),
    "fake:": Kind(_Generated, is_in_memory=True),
    "npz:": Kind(ArrayDataset, is_in_memory=True, has_path=True),
    FOLDER_PREFIX: Kind(_Folder, has_path=True),
    "csv:": Kind(_Table, has_path=True),
    "hf:": Kind(_find_hf, has_keys=True, has_path=True),
    "": Kind(_find_tfds, has_keys=True),
}
FILE_PREFIXES = tuple(prefix for prefix, kind in KINDS.items() if kind.has_path)
