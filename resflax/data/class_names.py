"""Matches the class names of a model with those of a dataset."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

from resflax.data.imagenet import synsets
from resflax.errors import printable

IMAGENET_CLASSES = 1000
SYNSET = re.compile(r"n[0-9]{8}")


def class_name(name: str) -> str:
    r"""Returns the name of a class from that of its folder, or from a table.

    Accents are composed (Unicode normalization NFC), since macOS decomposes those of file names.
    Bytes that are not UTF-8 and control characters become backslash escapes.

    >>> len("cafe\u0301"), len(class_name("cafe\u0301"))
    (5, 4)
    """
    return unicodedata.normalize("NFC", printable(name))


def sort_labels(names: Iterable[str]) -> tuple[str, ...]:
    """Returns names of classes sorted; if all are integers, as numbers.

    >>> sort_labels(["9", "10"]), sort_labels(["b", "a10", "a9"])
    (('9', '10'), ('a10', 'a9', 'b'))
    """
    names = sorted(names)
    return tuple(sorted(names, key=int) if all(map(str.isdecimal, names)) else names)


def other_spelling(name: str, names: Iterable[str]) -> str:
    """Returns the name that differs from `name` only in case, width or spaces; "" without one.

    >>> other_spelling("cat", ["Dog", "Cat"])
    'Cat'
    """
    return next((other for other in names if other != name and _folded(other) == _folded(name)), "")


def similar_names(names: Iterable[str]) -> list[list[str]]:
    """Returns the groups of names that differ only in case, width or spaces.

    >>> similar_names(["cat", "dog", "Cat"])
    [['cat', 'Cat']]
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_folded(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _folded(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def are_imagenet_synsets(names: Sequence[str], num_classes: int) -> bool:
    """Returns whether names are WordNet IDs and a model has ImageNet's number of classes.

    >>> are_imagenet_synsets(["n01440764"], 1000), are_imagenet_synsets(["tench"], 1000)
    (True, False)
    """
    return num_classes == IMAGENET_CLASSES and all(map(SYNSET.fullmatch, names))


def name_tables(
    model_classes: Sequence[str], num_classes: int, dataset_classes: Sequence[str]
) -> list[tuple[str, ...]]:
    """Returns the names under which a dataset may have the classes of a model.

    These are the model's own names, if they are known, and for a model of 1,000 classes the sorted
    synsets of ImageNet if the dataset has synsets and the model has none.

    Args:
      model_classes: class names of the model; () if unknown.
      num_classes: number of classes of the model.
      dataset_classes: class names of the dataset.
    """
    tables = [tuple(model_classes)] if model_classes else []
    has_own_synsets = bool(model_classes) and are_imagenet_synsets(model_classes, num_classes)
    if are_imagenet_synsets(dataset_classes, num_classes) and not has_own_synsets:
        tables.append(synsets())
    return tables


def match_classes(
    dataset_classes: Sequence[str], tables: Sequence[Sequence[str]], num_classes: int
) -> Int[np.ndarray, " dataset_classes"] | None:
    """Returns the class of a model that each class of a dataset is; None if they do not fit.

    Equal names are matched in any order; how accents are encoded does not count, case does. If one
    side has no names, the classes are matched by number if there are equally many.

    Args:
      dataset_classes: class names of the dataset; () if unknown.
      tables: names of the model's classes, see `name_tables`.
      num_classes: number of classes of the model.

    >>> match_classes("cab", ["abc"], 3), match_classes("abd", ["abc"], 3)
    (array([2, 0, 1]), None)
    >>> match_classes("xyz", [], 3), match_classes("xyz", [], 4)
    (array([0, 1, 2]), None)
    """
    normalized = [class_name(name) for name in dataset_classes]
    for table in tables if dataset_classes else ():
        names = [class_name(name) for name in table]
        if normalized == names:
            return np.arange(num_classes)
        if len({*names}) == len(names) and sorted(normalized) == sorted(names):
            position = {name: i for i, name in enumerate(names)}
            return np.array([position[name] for name in normalized])
    has_fitting_number = len(dataset_classes) in (0, num_classes)
    return (
        None if (tables and dataset_classes) or not has_fitting_number else np.arange(num_classes)
    )


def describe_difference(dataset_classes: Sequence[str], tables: Sequence[Sequence[str]]) -> str:
    """Returns examples of the names that only one side has, in parentheses; "" if there are none.

    >>> describe_difference("abd", ["abc"])
    " ('d' only in the dataset; 'c' only in the model)"
    """
    if not tables:
        return ""
    dataset, model = ([*map(class_name, names)] for names in (dataset_classes, tables[-1]))
    only_dataset = [name for name in dataset if name not in model]
    only_model = [name for name in model if name not in dataset]
    for name in only_dataset[:20]:
        if other := other_spelling(name, only_model):
            return f" ({name!r} in the dataset and {other!r} in the model differ in case or spaces)"
    parts = [
        f"{', '.join(map(repr, names[:3]))}{', ...' * (len(names) > 3)} only in the {side}"
        for names, side in ((only_dataset, "dataset"), (only_model, "model"))
        if names
    ]
    return f" ({'; '.join(parts)})" if parts else ""
