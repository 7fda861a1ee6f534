"""Which class of the model each label of a dataset means, and which classes count."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from resflax.data.class_names import class_name, describe_difference, match_classes, name_tables
from resflax.data.imagenet import validation_number
from resflax.data.source import Source
from resflax.errors import UserError
from resflax.weights.class_names import class_names

EXCLUDED = -1


class LabelMap(NamedTuple):
    """The classes that count, and the label of each class of a dataset among them.

    Attributes:
      columns: the classes of the model that count: logits are restricted to them.
      labels: for each label of the dataset, a position in `columns`, or `EXCLUDED`.
      names: names of the classes in `columns`: the model's, or else the dataset's.
    """

    columns: Int[np.ndarray, " classes"]
    labels: Int[np.ndarray, " dataset_classes"]
    names: tuple[str, ...]


def make_label_map(
    model_classes: tuple[str, ...],
    num_classes: int,
    source: Source,
    valid_labels: Sequence[str] = (),
) -> LabelMap:
    """Matches the classes of a dataset with those of a model.

    Equal names are matched by name, in any order. The sorted synsets of ImageNet name the classes
    of a model of 1,000 classes. Otherwise, if one side has no names, the numbers of classes must be
    equal. The names "0", "1", "2" and so on, which a TFDS dataset without names has, count as no
    names unless they are those of the model.

    Args:
      model_classes: class names of the model; () if unknown.
      num_classes: number of classes of the model.
      source: the split of the dataset.
      valid_labels: if given, the classes that count: 0-based indices, class names of the model or
        synsets. The dataset has either these classes, in this order if they have no common names,
        or all classes of the model, of which the examples of other classes are excluded.

    Raises:
      UserError: if the classes do not fit; the message says what differs.
    """
    names = class_names(model_classes, num_classes)
    known = model_classes if has_names(source.classes, model_classes) else ()
    everything = np.arange(num_classes)
    if not valid_labels:
        labels = _match(known, num_classes, everything, source)
        return LabelMap(everything, labels, model_classes or source.classes or names)
    columns = _parse_valid_labels(valid_labels, model_classes, num_classes)
    valid_names = tuple(names[i] for i in columns)
    if source.classes and len(source.classes) != num_classes:
        labels = _match(known, num_classes, columns, source)
        return LabelMap(columns, labels, valid_names)
    position = np.full(num_classes, EXCLUDED)
    position[columns] = np.arange(len(columns))
    indices = _match(known, num_classes, everything, source)
    return LabelMap(columns, position[indices], valid_names)


def has_names(dataset: Sequence[str], model_classes: Sequence[str]) -> bool:
    """Returns whether a dataset has class names other than its labels.

    >>> has_names(("0", "1"), ("cat", "dog")), has_names(("0", "1"), ("1", "0"))
    (False, True)
    """
    numbers = [str(label) for label in range(len(dataset))]
    return list(dataset) != numbers or set(dataset) == set(model_classes)


def _match(
    model_classes: tuple[str, ...],
    num_classes: int,
    columns: Int[np.ndarray, " classes"],
    source: Source,
) -> Int[np.ndarray, " dataset_classes"]:
    """Returns the position in `columns` of each class of the dataset."""
    dataset = source.classes
    tables = name_tables(model_classes, num_classes, dataset)
    known = [[table[i] for i in columns] for table in tables]
    found = match_classes(dataset, known, len(columns))
    if found is not None:
        return found
    difference = describe_difference(dataset, known)
    if len(dataset) != len(columns):
        subset = "" if len(columns) < num_classes else " (--valid-labels evaluates on some of them)"
        raise UserError(
            f"{source.name} has {len(dataset)} classes, the model {len(columns)}{difference}:"
            f" expected the model's classes{subset}"
        )
    raise UserError(
        f"{source.name} has other classes than the model{difference}: expected the same names"
    )


def _parse_valid_labels(
    labels: Sequence[str], model_classes: tuple[str, ...], num_classes: int
) -> Int[np.ndarray, " classes"]:
    tables = name_tables(model_classes, num_classes, labels)
    indices = []
    for label in labels:
        wanted = class_name(label)
        found = [i for table in tables for i, n in enumerate(table) if class_name(n) == wanted]
        if not found and label.isdecimal() and int(label) < num_classes:
            found = [int(label)]
        if len(found) != 1:
            problem = f"names {len(found)} classes" if found else "is not a class of the model"
            raise UserError(
                f"the valid label {label!r} {problem}: expected an index from 0 to"
                f" {num_classes - 1}, a class name of the model or, for ImageNet, a synset"
            )
        indices += found
    if len(set(indices)) < len(indices):
        double = next(i for i in indices if indices.count(i) > 1)
        raise UserError(f"the valid labels have class {double} twice: expected it once")
    return np.array(indices)


def read_valid_labels(path: Path) -> tuple[str, ...]:
    """Reads a file with one class index, name or synset per line; empty lines are ignored.

    Raises:
      UserError: if it cannot be read or is empty.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as e:
        reason = getattr(e, "strerror", None) or e
        raise UserError(f"cannot read the valid labels {path}: {reason}") from e
    labels = tuple(line for line in lines if line)
    if not labels:
        raise UserError(f"{path} is empty: expected one class index, name or synset per line")
    return labels


def read_real_labels(path: Path) -> list[list[int]]:
    """Reads ReaL labels: a JSON list with the list of correct labels of each example.

    Beyer et al. 2020, "Are we done with ImageNet?" (arXiv:2006.07159): `real.json` has an entry for
    each of the 50,000 validation images in the order of their numbers; an example with an empty
    list does not count.

    Raises:
      UserError: if the file cannot be read or has another form.
    """
    try:
        labels = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or e
        raise UserError(f"cannot read the ReaL labels {path}: {reason}") from e
    is_valid = isinstance(labels, list) and all(
        isinstance(row, list) and all(type(label) is int and label >= 0 for label in row)
        for row in labels
    )
    if not is_valid or not labels:
        raise UserError(f"{path} is not a JSON list of lists of class indices, one per example")
    return labels


def real_labels_of(source: Source, labels: list[list[int]], path: Path) -> list[list[int]]:
    """Returns the ReaL labels of each example of a split.

    They are found by the numbers in the names of ImageNet's validation images; without such names
    the split must have one example per entry, in the same order.

    Raises:
      UserError: if the numbers of examples and entries differ.
    """
    numbers = [validation_number(source.file_name(i)) for i in range(len(source))]
    found = [number for number in numbers if number is not None]
    if len(found) == len(numbers) and 1 <= min(found) <= max(found) <= len(labels):
        return [labels[number - 1] for number in found]
    if found or len(labels) != len(source):
        raise UserError(
            f"{path} has {len(labels)} entries, {source.name} {len(source)} examples, {len(found)}"
            " of them named ILSVRC2012_val_NUMBER: expected such names for all, or equal numbers"
        )
    return labels
