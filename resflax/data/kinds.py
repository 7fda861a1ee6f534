"""Kinds of datasets, as a table: how the splits of each kind are opened."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from resflax.data.array_source import ArraySource
from resflax.data.fake import make_fake_split
from resflax.data.folder import open_folder, open_folder_split
from resflax.data.hf import HfDataset
from resflax.data.in_memory import read_all
from resflax.data.location import DEFAULT_KEYS, Location
from resflax.data.source import Source, SplitSources
from resflax.data.split_expressions import overlaps, parse_expression
from resflax.data.table import open_table, open_table_split
from resflax.errors import UserError
from resflax.files import user_path

FOLDER_PREFIX = "folder:"


class Kind(NamedTuple):
    """A row of `KINDS`.

    Attributes:
      open_splits: `(location, chosen) -> sources`: opens all splits, with names that are given for
        some of "train", "validation" and "test".
      open_split: `(location, split) -> source`: opens one split; "" is the test split, or else the
        validation split.
      overlap: `(location, first, second) -> bool`: whether two splits have common examples.
      is_in_memory: whether the images are in memory, of one size.
      has_keys: whether images and labels have names.
      has_path: whether the name has the path of files that TFDS did not prepare.
    """

    open_splits: Callable[[Location, Mapping[str, str]], SplitSources]
    open_split: Callable[[Location, str], Source]
    overlap: Callable[[Location, str, str], bool]
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
    kind, chosen = _checked_kind(location), {k: name for k, name in chosen.items() if name}
    sources = kind.open_splits(location, chosen)
    names = dict(sources.names)
    for role in ("validation", "test"):
        others = [r for r in names if r != role and names[r] and (r in chosen or r == "train")]
        common = [
            r for r in others if names[role] and kind.overlap(location, names[role], names[r])
        ]
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
    return _checked_kind(location).open_split(location, split)


def _checked_kind(location: Location) -> Kind:
    """Returns the kind of a dataset; raises `UserError` if its keys have no effect."""
    kind = kind_of(location.name)
    if location.keys != DEFAULT_KEYS and not kind.has_keys:
        raise UserError(
            "config.data.image_key and config.data.label_key have no effect on"
            f" {location.name}, whose images and labels have no names: leave them out"
        )
    return kind


@contextlib.contextmanager
def folder_errors_as_user_error(path: str) -> Iterator[None]:
    """Turns errors while listing a folder into a `UserError` of one line."""
    try:
        yield
    except (OSError, RuntimeError) as e:  # no permission, name too long, unknown ~user
        folder, reason = getattr(e, "filename", None) or path, getattr(e, "strerror", None) or e
        raise UserError(f"cannot read the folder {str(folder)!r}: {reason}") from e


def _open_folder(location: Location, chosen: Mapping[str, str]) -> SplitSources:
    with folder_errors_as_user_error(location.path):
        root = user_path(location.path, "dataset")
        return open_folder(root, location.on_bad_example, chosen)


def _open_folder_split(location: Location, split: str) -> Source:
    with folder_errors_as_user_error(location.path):
        root = user_path(location.path, "dataset")
        return open_folder_split(root, split, location.on_bad_example)


def _folders_overlap(location: Location, first: str, second: str) -> bool:
    root = user_path(location.path, "dataset")
    paths = [Path(os.path.realpath(root / name)) for name in (first, second)]
    return paths[0].is_relative_to(paths[1]) or paths[1].is_relative_to(paths[0])


def _open_table(location: Location, chosen: Mapping[str, str]) -> SplitSources:
    with folder_errors_as_user_error(location.path):
        return open_table(user_path(location.path, "dataset"), location.on_bad_example, chosen)


def _open_table_split(location: Location, split: str) -> Source:
    with folder_errors_as_user_error(location.path):
        file = user_path(location.path, "dataset")
        return open_table_split(file, split, location.on_bad_example)


def _hf(location: Location) -> HfDataset:
    return HfDataset(location.name, user_path(location.path, "dataset"), location.keys)


def _open_hf(location: Location, chosen: Mapping[str, str]) -> SplitSources:
    with folder_errors_as_user_error(location.path):
        return _hf(location).open_splits(chosen)


def _open_hf_split(location: Location, split: str) -> Source:
    with folder_errors_as_user_error(location.path):
        return _hf(location).open_split(split)


def _hf_splits_overlap(location: Location, first: str, second: str) -> bool:
    return _hf(location).overlap(first, second)


def _open_tfds(location: Location, chosen: Mapping[str, str]) -> SplitSources:
    from resflax.data.tfds import find_builder, open_builder  # imports TFDS: 0.3 s

    name = location.name
    return open_builder(name, find_builder(name, location.data_dir), chosen, location.keys)


def _open_tfds_split(location: Location, split: str) -> Source:
    from resflax.data.tfds import find_builder, open_builder_split

    name = location.name
    return open_builder_split(name, find_builder(name, location.data_dir), split, location.keys)


def _tfds_splits_overlap(location: Location, first: str, second: str) -> bool:
    from resflax.data.tfds import find_builder, split_lengths

    lengths = split_lengths(find_builder(location.name, location.data_dir))
    return overlaps(*(parse_expression(location.name, e, lengths) for e in (first, second)))


def _open_digits(location: Location, chosen: Mapping[str, str]) -> SplitSources:
    from resflax.data.tfds import open_builder

    with _digits_builder() as builder:
        sources = open_builder("digits", builder, chosen)
        validation, test = (s and _read(s) for s in (sources.validation, sources.test))
        return SplitSources(_read(sources.train), validation, test, sources.names, "")


def _open_digits_split(location: Location, split: str) -> Source:
    from resflax.data.tfds import open_builder_split

    with _digits_builder() as builder:
        return _read(open_builder_split("digits", builder, split))


@contextlib.contextmanager
def _digits_builder() -> Iterator[Any]:
    from resflax.data.digits import prepared_digits  # imports TFDS: 0.3 s

    try:
        with prepared_digits() as builder:
            yield builder
    except OSError as e:
        raise UserError(f"cannot write the digits to a temporary folder: {e}") from e


def _read(source: Source) -> Any:
    return ArraySource(source.name, read_all(source), source.classes)


def _digits_overlap(location: Location, first: str, second: str) -> bool:
    lengths = {"train": 1437, "test": 360}
    return overlaps(*(parse_expression("digits", e, lengths) for e in (first, second)))


def _open_fake(location: Location, chosen: Mapping[str, str]) -> SplitSources:
    names = {"train": "train", "validation": "", "test": "test"} | dict(chosen)
    sources = {k: _open_fake_split(location, v) if v else None for k, v in names.items()}
    train = sources["train"]
    assert train
    return SplitSources(train, sources["validation"], sources["test"], names, "")


def _open_fake_split(location: Location, split: str) -> Source:
    noise, classes = make_fake_split(location.name, location.seed, split or "test")
    return ArraySource(f"{location.name}, {split or 'test'}", noise, classes)


def _names_are_equal(location: Location, first: str, second: str) -> bool:
    return first == second


# By name, or by prefix; the row "" is that of all other names.
KINDS = {
    "digits": Kind(_open_digits, _open_digits_split, _digits_overlap, is_in_memory=True),
    "fake": Kind(_open_fake, _open_fake_split, _names_are_equal, is_in_memory=True),
    "fake:": Kind(_open_fake, _open_fake_split, _names_are_equal, is_in_memory=True),
    FOLDER_PREFIX: Kind(_open_folder, _open_folder_split, _folders_overlap, has_path=True),
    "csv:": Kind(_open_table, _open_table_split, _names_are_equal, has_path=True),
    "hf:": Kind(_open_hf, _open_hf_split, _hf_splits_overlap, has_keys=True, has_path=True),
    "": Kind(_open_tfds, _open_tfds_split, _tfds_splits_overlap, has_keys=True),
}
FILE_PREFIXES = tuple(prefix for prefix, kind in KINDS.items() if kind.has_path)
