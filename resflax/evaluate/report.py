"""The results of an evaluation as JSON values and as a table."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from resflax.evaluate.classes import LabelMap
from resflax.evaluate.run import Evaluated
from resflax.metrics import Metrics

# Key in `evaluation.json`, and description in the table.
ROWS = {
    "accuracy": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "nll": "negative log-likelihood, nats",
    "brier": "Brier score",
    "ece": "expected calibration error",
    "adaptive_ece": "the same, equal-mass bins",
    "real_accuracy": "ReaL accuracy",
}
MAX_LISTED_CLASSES = 20
MAX_CONFUSION_CLASSES = 100  # with more, evaluation.json has no confusion matrix


def results(
    metrics: Metrics,
    evaluated: Evaluated,
    label_map: LabelMap,
    real_labels: Sequence[Sequence[int]] = (),
) -> dict[str, Any]:
    """Returns the results as JSON values, with the keys of `evaluation.json`.

    Args:
      metrics: of the examples that count.
      evaluated: these examples.
      label_map: the classes that count.
      real_labels: the correct labels of each example of the split; examples without any do not
        count for `real_accuracy`.
    """
    values: dict[str, Any] = {
        "accuracy": metrics.accuracy,
        "top5": metrics.top5,
        "nll": metrics.nll,
        "brier": metrics.brier,
        "ece": metrics.ece,
        "adaptive_ece": metrics.adaptive_ece,
        "examples": metrics.examples,
        "correct": metrics.correct,
        "skipped": len(evaluated.skipped),
        "excluded": evaluated.excluded,
    }
    if real_labels:
        values |= _real_results(evaluated, label_map, real_labels)
    if len(label_map.columns) <= MAX_CONFUSION_CLASSES:
        values["confusion"] = metrics.confusion.tolist()
    return values | {
        "per_class": [None if math.isnan(value) else value for value in metrics.per_class.tolist()],
        "class_examples": metrics.confusion.sum(1).tolist(),
        "classes": list(label_map.names),
    }


def _real_results(
    evaluated: Evaluated, label_map: LabelMap, real_labels: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """Returns the share of the examples whose prediction is one of their ReaL labels."""
    predictions = label_map.columns[evaluated.scores.prediction].tolist()
    hits = [
        prediction in real_labels[index]
        for index, prediction in zip(evaluated.indices.tolist(), predictions, strict=True)
        if real_labels[index]
    ]
    accuracy = float(np.mean(hits)) if hits else None
    return {"real_accuracy": accuracy, "real_examples": len(hits)}


def table(values: dict[str, Any]) -> str:
    """Returns a table of the results: the metrics, and the accuracy of the classes."""
    counts = f"{values['correct']:,} of {values['examples']:,} correct"
    for key in ("skipped", "excluded"):
        counts += f", {values[key]:,} {key}" if values[key] else ""
    lines = [
        f"  {name:32}{values[key]:8.4f}"
        for key, name in ROWS.items()
        if values.get(key) is not None
    ]
    if values.get("real_accuracy") is not None:
        lines[-1] += f"  of {values['real_examples']:,} examples"
    return "\n".join([counts, *lines, "", *_class_lines(values)])


def _class_lines(values: dict[str, Any]) -> list[str]:
    rows = [
        (accuracy, count, name)
        for accuracy, count, name in zip(
            values["per_class"], values["class_examples"], values["classes"], strict=True
        )
        if accuracy is not None
    ]
    title = "accuracy of each class"
    if len(rows) > MAX_LISTED_CLASSES:
        rows = sorted(rows)[: MAX_LISTED_CLASSES // 2]
        title = f"accuracy of the {len(rows)} worst classes"
    return [
        f"{title}, and number of examples",
        *(f"  {name[:30]:32}{accuracy:8.4f}{count:8,}" for accuracy, count, name in rows),
    ]
