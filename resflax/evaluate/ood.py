"""Detection of images of another dataset by the uncertainty of the predictions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from resflax.evaluate.log_probabilities import Rows
from resflax.metrics import (
    OOD_SCORES,
    Detection,
    bootstrap_interval,
    bounded_samples,
    detection,
    detection_statistic,
    ood_scores,
)
from resflax.metrics.systems import SELECTED, System

Scores = dict[str, Float[np.ndarray, " n"]]
# Zero for a single network, so it is reported for ensembles only.
ENSEMBLE_SCORES = ("mutual_information",)


def score_rows(systems: Sequence[System], rows: Rows) -> tuple[Scores, ...]:
    """Returns the scores of each example, for each system; larger ones are less like the data."""
    logits = rows.log_p + rows.log_sum_exp[..., None]
    scores = [ood_scores(logits[list(system.members)]) for system in systems]
    return tuple(
        {k: v for k, v in own.items() if len(system.members) > 1 or k not in ENSEMBLE_SCORES}
        for system, own in zip(systems, scores, strict=True)
    )


def compare(
    systems: Sequence[System], inside: Sequence[Scores], outside: Sequence[Scores]
) -> dict[str, Any]:
    """Returns the detection metrics of each score as JSON values.

    Returns:
      "scores", of the first system; and for an ensemble "members_mean", the mean over the members.
      Each is a dict by score of "auroc", "aupr" and "fpr95"; in "scores" also "intervals", see
      `intervals`.
    """
    found = [
        {name: detection(own[name], other[name])._asdict() for name in OOD_SCORES if name in own}
        for own, other in zip(inside, outside, strict=True)
    ]
    bounds = intervals(inside[0], outside[0])
    scores = {name: {**own, "intervals": bounds[name]} for name, own in found[0].items()}
    values: dict[str, Any] = {"examples": len(outside[0]["energy"]), "scores": scores}
    members = [
        own for system, own in zip(systems[1:], found[1:], strict=True) if system.name != SELECTED
    ]
    if members:
        values["members_mean"] = {
            name: {
                key: float(np.mean([member[name][key] for member in members])) for key in metrics
            }
            for name, metrics in members[0].items()
        }
    return values


def intervals(inside: Scores, outside: Scores) -> dict[str, dict[str, list[float]]]:
    """Returns 95 % bootstrap intervals of "auroc", "aupr" and "fpr95", by score.

    The examples inside and outside are drawn separately, and the same for all scores: 1,000 samples
    of up to 10,000 examples together, and fewer of more, see `bounded_samples`.
    """
    names = [name for name in OOD_SCORES if name in inside]
    statistics = [detection_statistic(inside[name], outside[name]) for name in names]
    sizes = (len(inside[names[0]]), len(outside[names[0]]))
    low, high = bootstrap_interval(
        lambda *counts: np.stack([statistic(*counts) for statistic in statistics], 1),
        sizes,
        samples=bounded_samples(sum(sizes)),
    )
    return {
        name: {
            key: [float(a), float(b)]
            for key, a, b in zip(Detection._fields, low[i], high[i], strict=True)
        }
        for i, name in enumerate(names)
    }
