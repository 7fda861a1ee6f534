"""The results under corruptions as JSON values and as lines of text, and the reference."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from resflax.errors import UserError
from resflax.evaluate.corruptions import Condition, CorruptedSums
from resflax.metrics.corruption_error import (
    corruption_errors,
    mean_corruption_error,
    relative_corruption_errors,
)
from resflax.metrics.systems import System

METRICS = ("accuracy", "nll", "ece")
DATASETS = {32: "CIFAR-10-C", 224: "ImageNet-C"}


class CorruptionReference(NamedTuple):
    """Another network under the same corruptions.

    Attributes:
      name: its file.
      clean: its error without corruption.
      errors: its errors by corruption, at each severity.
    """

    name: str
    clean: float
    errors: Mapping[str, Float[np.ndarray, " severities"]]


def read_corruption_reference(
    path: Path, names: Sequence[str], severities: Sequence[int]
) -> CorruptionReference:
    """Reads the `evaluation.json` of another network.

    Raises:
      UserError: if it cannot be read, or lacks a corruption or a severity.
    """
    try:
        values = json.loads(path.read_text())
        found = values["corruptions"]
        known = [int(severity) for severity in found["severities"]]
        accuracy = {name: np.array(row, np.float64) for name, row in found["accuracy"].items()}
        clean = 1 - float(values["accuracy"])
    except OSError as e:
        raise UserError(f"cannot read the corruption reference {path}: {e.strerror}") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(
            f"{path} has no results under corruptions: expected an evaluation.json that resflax"
            " evaluate --corruptions wrote"
        ) from e
    missing = [name for name in names if name not in accuracy]
    missing += [f"severity {severity}" for severity in severities if severity not in known]
    if missing:
        raise UserError(
            f"{path} lacks {', '.join(missing)}: expected a reference with the same corruptions and"
            " severities"
        )
    chosen = [known.index(severity) for severity in severities]
    return CorruptionReference(
        str(path), clean, {name: 1 - accuracy[name][chosen] for name in names}
    )


def corruption_results(
    sums: Mapping[Condition, CorruptedSums],
    systems: Sequence[System],
    *,
    clean_accuracy: float,
    reference: CorruptionReference | None = None,
) -> dict[str, Any]:
    """Returns the results as JSON values.

    Args:
      sums: of each condition.
      systems: what was scored; the first one is the one that was asked for.
      clean_accuracy: its accuracy without corruption.
      reference: another network to compare with.

    Returns:
      "severities"; "accuracy", "nll" and "ece", lists over the severities by corruption;
      "mean_error", the mean top-1 error; with a reference "corruption_errors",
      "mean_corruption_error" (mCE) and "relative_mean_corruption_error" as ratios; and "members",
      for an ensemble, with the same metrics of each.
    """
    severities = sorted({condition.severity for condition in sums})
    names = list(dict.fromkeys(condition.name for condition in sums))
    own = [_metrics(sums, i, names, severities) for i in range(len(systems))]
    values: dict[str, Any] = {"severities": severities, **own[0]}
    if reference:
        errors = {name: 1 - np.array(row) for name, row in own[0]["accuracy"].items()}
        values["reference"] = reference.name
        values["corruption_errors"] = corruption_errors(errors, reference.errors)
        values["mean_corruption_error"] = mean_corruption_error(errors, reference.errors)
        values["relative_mean_corruption_error"] = _relative(errors, clean_accuracy, reference)
    count = len(systems[0].members)
    if count > 1:
        values["members"] = [
            {"where": system.name, **metrics}
            for system, metrics in zip(systems[1 : count + 1], own[1 : count + 1], strict=True)
        ]
    return values


def _metrics(
    sums: Mapping[Condition, CorruptedSums], i: int, names: list[str], severities: list[int]
) -> dict[str, Any]:
    """Returns the metrics of a system."""
    rows = {name: [sums[Condition(name, severity)] for severity in severities] for name in names}
    values: dict[str, Any] = {
        "accuracy": {name: [float(s.accuracy[i]) for s in row] for name, row in rows.items()},
        "nll": {name: [float(s.mean_nll[i]) for s in row] for name, row in rows.items()},
        "ece": {name: [float(s.ece[i]) for s in row] for name, row in rows.items()},
    }
    return values | {"mean_error": 1 - float(np.mean(list(values["accuracy"].values())))}


def _relative(
    errors: Mapping[str, Float[np.ndarray, " severities"]],
    clean_accuracy: float,
    reference: CorruptionReference,
) -> float | None:
    """Returns the relative mCE; None if the reference does not get worse under a corruption."""
    if any(np.sum(row - reference.clean) <= 0 for row in reference.errors.values()):
        return None
    relative = relative_corruption_errors(
        errors, 1 - clean_accuracy, reference.errors, reference.clean
    )
    return float(np.mean(list(relative.values())))


def corruption_lines(values: Mapping[str, Any]) -> list[str]:
    """Returns a table: the accuracy of each corruption (row) at each severity (column).

    Args:
      values: see `corruption_results`, with "parameters".
    """
    severities = values["severities"]
    lines = [
        f"accuracy under corruptions, severities {', '.join(map(str, severities))},"
        f" parameters of {values['parameters']}"
    ]
    for name, row in values["accuracy"].items():
        cells = "".join(f"{accuracy:8.4f}" for accuracy in row)
        lines.append(f"  {name.replace('_', ' '):32}{cells}")
    line = f"  {'mean error':32}{values['mean_error']:8.4f}"
    if "members" in values:
        mean = np.mean([member["mean_error"] for member in values["members"]])
        line += f"  members {mean:.4f}"
    lines.append(line)
    if "reference" in values:
        lines.append(
            f"  {'mean corruption error':32}{values['mean_corruption_error']:8.4f}  of that of"
            f" {values['reference']}"
        )
    return lines
