"""Columns of Hugging Face datasets with the images and the labels."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from resflax.data.location import FeatureKeys
from resflax.errors import UserError

# Names of a label's column, of which the first is taken if there are several candidates.
USUAL_LABELS = ("label", "labels", "class", "target")


class Columns(NamedTuple):
    """The columns of the images and the labels.

    Attributes:
      image: column of the images: bytes, or "bytes" and "path".
      label: column of the labels: class indices or class names.
      classes: class names; () if they follow from the labels.
    """

    image: str
    label: str
    classes: tuple[str, ...]


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
    image = _choose(name, "image", images, keys.image, schema.names)
    label = _choose(name, "label", usual[:1] or labels, keys.label, schema.names)
    return Columns(image, label, tuple(features.get(label, {}).get("names", ())))


def read_labels(
    name: str, column: Any, classes: Sequence[str]
) -> tuple[Int[np.ndarray, " examples"], tuple[str, ...]]:
    """Reads the labels of all examples of a split.

    Args:
      name: name of the split, for messages.
      column: a `pyarrow.ChunkedArray` of integers or strings.
      classes: class names; () if they follow from the labels.

    Returns:
      The labels, -1 for one that is missing, and the class names.

    Raises:
      UserError: if a label is not one of the classes.
    """
    values = column.to_pylist()
    present = {value for value in values if value is not None}
    if any(isinstance(value, str) for value in present):
        classes = tuple(classes or sorted(present))
        if unknown := sorted(present - {*classes}):
            raise UserError(
                f"{name} has the class {unknown[0]!r}, which the training split lacks: expected the"
                " same classes"
            )
        index = {key: i for i, key in enumerate(classes)}
        values = [None if value is None else index[value] for value in values]
    labels = np.array([-1 if value is None else int(value) for value in values], np.int64)
    if not classes:
        classes = tuple(map(str, range(int(labels.max(initial=-1)) + 1)))
    if labels.max(initial=-1) >= len(classes):
        raise UserError(
            f"{name} has the label {labels.max()}: expected from 0 to {len(classes) - 1}, the"
            " classes of the training split"
        )
    return np.maximum(labels, -1), tuple(classes)


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

    types = pyarrow.types
    text = types.is_string(field.type) or types.is_large_string(field.type)
    return bool(types.is_integer(field.type) or (text and field.name in USUAL_LABELS))


def _choose(
    name: str, kind: str, candidates: Sequence[str], chosen: str, columns: Sequence[str]
) -> str:
    """Returns the chosen column, or the only candidate."""
    if chosen:
        if chosen not in columns:
            raise UserError(
                f"config.data.{kind}_key is {chosen!r}, which is not a column of {name}: expected"
                f" one of {', '.join(columns)}"
            )
        return chosen
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise UserError(
            f"{name} has the columns {', '.join(columns)}, of which none has {kind}s: choose one"
            f" with --config.data.{kind}_key={columns[-1] if columns else 'NAME'} (evaluate:"
            f" --{kind}-key)"
        )
    raise UserError(
        f"{name} has several columns with {kind}s, {', '.join(candidates)}: choose one with"
        f" --config.data.{kind}_key={candidates[0]} (evaluate: --{kind}-key)"
    )
