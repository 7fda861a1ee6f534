"""Detection of images of another dataset by the uncertainty of the predictions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from resflax.evaluate.log_probabilities import Rows
from resflax.evaluate.systems import System
from resflax.metrics import OOD_SCORES, detection, ood_scores

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
      Each is a dict by score of "auroc", "aupr" and "fpr95".
    """
    found = [
        {name: detection(own[name], other[name])._asdict() for name in OOD_SCORES if name in own}
        for own, other in zip(inside, outside, strict=True)
    ]
    values: dict[str, Any] = {"examples": len(outside[0]["energy"]), "scores": found[0]}
    members = [
        own
        for system, own in zip(systems, found, strict=True)
        if len(system.members) == 1 and system is not systems[0]
    ]
    if members:
        values["members_mean"] = {
            name: {
                key: float(np.mean([member[name][key] for member in members])) for key in metrics
            }
            for name, metrics in members[0].items()
        }
    return values
