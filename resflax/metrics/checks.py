"""Checks of what the metrics are computed from; each raises a one-line `ValueError`."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int


def check_logits(logits: Any) -> Float[np.ndarray, "n classes"]:
    """Returns logits or log-probabilities as an array.

    Raises:
      ValueError: if they do not have the shape `(n, classes)`, or there are none.
    """
    logits = np.asarray(logits)
    if logits.ndim != 2 or not logits.size:
        raise ValueError(
            f"logits have the shape {logits.shape}: expected (examples, classes), at least 1 each"
        )
    return logits


def check_members(logits: Any) -> Float[np.ndarray, "members n classes"]:
    """Returns the logits or log-probabilities of an ensemble's members as an array.

    Raises:
      ValueError: if they do not have the shape `(members, n, classes)`, or there are none.
    """
    logits = np.asarray(logits)
    if logits.ndim != 3 or not logits.size:
        raise ValueError(
            f"the members' logits have the shape {logits.shape}: expected (members, examples, "
            "classes), at least 1 each"
        )
    return logits


def check_labels(labels: Any, examples: int, classes: int) -> Int[np.ndarray, " n"]:
    """Returns labels as an int64 array.

    Raises:
      ValueError: if they are not `examples` integers from 0 to `classes - 1`.
    """
    labels = np.asarray(labels)
    if labels.shape != (examples,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels have the shape {labels.shape} and the dtype {labels.dtype}: expected one "
            f"integer for each of {examples} examples"
        )
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(outside):
        first = int(outside[0])
        raise ValueError(
            f"example {first} has the label {labels[first]}: expected from 0 to {classes - 1}"
        )
    return labels.astype(np.int64)


def check_finite(name: str, values: Any) -> Float[np.ndarray, "*shape"]:
    """Returns values as a float64 array.

    Raises:
      ValueError: if there are none, or a value is infinite or NaN.
    """
    values = np.asarray(values, np.float64)
    if not values.size:
        raise ValueError(f"{name} is empty: expected at least one value")
    if not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise ValueError(f"{name}: {count} of {values.size} values are not finite")
    return values
