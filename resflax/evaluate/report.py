"""The results of an evaluation as JSON values, with the keys of `evaluation.json`."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from resflax.evaluate.assess import Assessment
from resflax.evaluate.classes import LabelMap
from resflax.evaluate.run import Evaluated
from resflax.evaluate.summary import summarize_members, summarize_system
from resflax.metrics import ExampleScores, Metrics, summarize

MAX_CONFUSION_CLASSES = 100  # with more, evaluation.json has no confusion matrix


def results(
    assessment: Assessment,
    label_map: LabelMap,
    sources: Sequence[str],
    real_labels: Sequence[Sequence[int]] = (),
) -> dict[str, Any]:
    """Returns the results as JSON values.

    Args:
      assessment: the results over the split.
      label_map: the classes that count.
      sources: one line for each member that says what was loaded.
      real_labels: the correct labels of each example of the split; examples without any do not
        count for `real_accuracy`.
    """
    evaluated, scored = assessment.evaluated, assessment.scored
    scores = scored.scores[0]
    metrics = summarize(scores, len(label_map.columns))
    values: dict[str, Any] = {}
    if len(sources) > 1:
        members = summarize_members(assessment, sources)
        own = {key: value for key, value in members["ensemble"].items() if key != "size"}
    else:
        members, own = {}, summarize_system(assessment, 0, intervals=True)
        own["entropy"] = float(scored.uncertainty.total_entropy.mean())
    values |= own
    if calibration := assessment.calibration:
        values["calibration"] = {
            "data": calibration.data,
            "examples": calibration.examples,
            "splits": len(calibration.splits),
            "temperatures": len(calibration.temperatures(0)),
        }
    values |= members
    values |= {
        "examples": metrics.examples,
        "correct": metrics.correct,
        "skipped": len(evaluated.skipped),
        "excluded": evaluated.excluded,
    }
    if real_labels:
        values |= _real_results(evaluated, scores, label_map, real_labels)
    return values | _class_results(metrics, label_map)


def _class_results(metrics: Metrics, label_map: LabelMap) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if len(label_map.columns) <= MAX_CONFUSION_CLASSES:
        values["confusion"] = metrics.confusion.tolist()
    return values | {
        "per_class": [None if math.isnan(value) else value for value in metrics.per_class.tolist()],
        "class_examples": metrics.confusion.sum(1).tolist(),
        "classes": list(label_map.names),
    }


def _real_results(
    evaluated: Evaluated,
    scores: ExampleScores,
    label_map: LabelMap,
    real_labels: Sequence[Sequence[int]],
) -> dict[str, Any]:
    """Returns the share of the examples whose prediction is one of their ReaL labels."""
    predictions = label_map.columns[scores.prediction].tolist()
    hits = [
        prediction in real_labels[index]
        for index, prediction in zip(evaluated.indices.tolist(), predictions, strict=True)
        if real_labels[index]
    ]
    accuracy = float(np.mean(hits)) if hits else None
    return {"real_accuracy": accuracy, "real_examples": len(hits)}
