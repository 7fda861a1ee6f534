"""Columns of Hugging Face datasets with the images and the labels."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from resflax.data.class_names import class_name, other_spelling, sort_labels
from resflax.data.location import FeatureKeys
from resflax.errors import UserError

# Names of a label's column, of which the first is taken if there are several candidates.
USUAL_LABELS = ("label", "labels", "class", "target")
EXPECTED = {
    "image": "expected one of encoded images, as bytes (csv:FILE takes paths of images)",
    "label": "expected one of integers or text, such as label; choose one of text with"
    " --config.data.label_key=NAME (evaluate: --label-key)",
}


class Columns(NamedTuple):
    """The columns of the images and the labels.

    Attributes:
      image: column of the images: bytes, or "bytes" and "path".
      label: column of the labels: class indices or class names.
      names: class names by index, as the library `datasets` writes them; () if the labels are
        class names or any integers.
    """

    image: str
    label: str
    names: tuple[str, ...]


def find_columns(name: str, schema: Any, keys: FeatureKeys) -> Columns:
    """Finds the columns in a schema of pyarrow, and the class names in its metadata.

    Args:
      name: name of the dataset, for messages.
      schema: a `pyarrow.Schema`; the library `datasets` describes the columns in its metadata.
      keys: names of the columns; "" chooses.

    Raises:
      UserError: if there is no such column, or several.
    """
    features = _features(schema)
    types = {key: value.get("_type") for key, value in features.items()}
    images = [f.name for f in schema if types.get(f.name) == "Image" or _holds_bytes(f)]
    labels = [key for key in schema.names if types.get(key) == "ClassLabel"]
    labels = labels or [f.name for f in schema if _holds_labels(f)]
    usual = [key for key in USUAL_LABELS if key in labels]
    image = _choose(name, "image", images, keys.image, images, schema.names)
    possible = [*labels, *(field.name for field in schema if _is_text(field.type))]
    label = _choose(name, "label", usual[:1] or labels, keys.label, possible, schema.names)
    return Columns(image, label, tuple(features.get(label, {}).get("names", ())))


def read_labels(
    name: str, column: Any, names: Sequence[str] = (), classes: Sequence[str] = ()
) -> tuple[Int[np.ndarray, " examples"], tuple[str, ...]]:
    """Reads the labels of all examples of a split.

    Args:
      name: name of the split, for messages.
      column: a `pyarrow.ChunkedArray` of integers or strings.
      names: class names by index, see `Columns`.
      classes: classes of the training split; () if they are the labels of this one, sorted.

    Returns:
      The labels, -1 for one that is missing, and the class names.

    Raises:
      UserError: if a label is not one of the classes.
    """
    values = column.to_pylist()
    present = {value for value in values if value is not None}
    texts = any(isinstance(value, str) for value in present)
    if names and not texts:
        index = dict(enumerate(range(len(names)))) | {v: -1 for v in present if v < 0}
        classes = tuple(names)
    else:
        missing = {v for v in present if not texts and v < 0}
        of_value = {value: class_name(str(value)) for value in present - missing}
        classes = tuple(names or classes or sort_labels({*of_value.values()}))
        position = {class_name(text): i for i, text in enumerate(classes)}
        index = {v: position[text] for v, text in of_value.items() if text in position}
        index |= dict.fromkeys(missing, -1)
    if unknown := sorted(present - index.keys()):
        raise UserError(_unknown_label(name, unknown[0], classes))
    labels = [-1 if value is None else index[value] for value in values]
    return np.array(labels, np.int64), classes


def _unknown_label(name: str, label: int | str, classes: Sequence[str]) -> str:
    spelling = other_spelling(str(label), classes)
    hint = f" ({spelling!r}, which it has, differs only in case or spaces)" if spelling else ""
    return (
        f"{name} has the label {label!r}, which is not one of the {len(classes)} classes of the"
        f" training split{hint}: expected the same classes"
    )


def _features(schema: Any) -> dict[str, Any]:
    """Returns how the library `datasets` describes the columns; {} if it did not write the file."""
    try:
        text = (schema.metadata or {})[b"huggingface"]
        return dict(json.loads(text)["info"]["features"])
    except (KeyError, ValueError, TypeError):
        return {}


def _holds_bytes(field: Any) -> bool:
    """Returns whether a column has bytes, alone or as a field "bytes"."""
    import pyarrow

    types = pyarrow.types
    kind = field.type
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _holds_labels(field: Any) -> bool:
    import pyarrow

    kind = _value_type(field.type)
    return bool(pyarrow.types.is_integer(kind) or (_is_text(kind) and field.name in USUAL_LABELS))


def _is_text(kind: Any) -> bool:
    import pyarrow

    types, kind = pyarrow.types, _value_type(kind)
    return bool(types.is_string(kind) or types.is_large_string(kind))


def _value_type(kind: Any) -> Any:
    """Returns the type of a column's values; pandas writes categories as a dictionary."""
    import pyarrow

    return kind.value_type if pyarrow.types.is_dictionary(kind) else kind


def _choose(
    name: str,
    kind: str,
    candidates: Sequence[str],
    chosen: str,
    possible: Sequence[str],
    columns: Sequence[str],
) -> str:
    """Returns the chosen column, one of those possible, or the only candidate."""
    if chosen and chosen not in possible:
        reason = f"without {kind}s" if chosen in columns else "that does not exist"
        raise UserError(
            f"config.data.{kind}_key is {chosen!r}, a column {reason} in {name}: expected one of"
            f" {', '.join(possible) or '(none)'}"
        )
    if chosen:
        return chosen
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise UserError(
            f"{name} has the columns {', '.join(columns)}, of which none has {kind}s:"
            f" {EXPECTED[kind]}"
        )
    raise UserError(
        f"{name} has several columns with {kind}s, {', '.join(candidates)}: choose one with"
        f" --config.data.{kind}_key={candidates[0]} (evaluate: --{kind}-key)"
    )
