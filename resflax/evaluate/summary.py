"""The metrics of one system as JSON values: a member, an ensemble, or either after calibration."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from resflax.metrics import BrierSums, ExampleScores, Uncertainty, brier_decomposition, summarize
from resflax.metrics.risk_coverage import risk_coverage

# Metrics of a system that are numbers; means and standard deviations over the members have these.
KEYS = ("accuracy", "top5", "nll", "brier", "ece", "adaptive_ece", "aurc")


def summarize_system(scores: ExampleScores, brier: BrierSums) -> dict[str, Any]:
    """Returns the metrics of a system: `KEYS` and "brier_decomposition".

    Args:
      scores: of the examples that count.
      brier: sums over the same examples.
    """
    metrics = summarize(scores, len(brier.count))
    values: dict[str, Any] = {key: getattr(metrics, key) for key in KEYS if key != "aurc"}
    values["aurc"] = risk_coverage(scores.confidence, scores.is_correct).area
    values["brier_decomposition"] = brier_decomposition(brier)._asdict()
    return values


def summarize_uncertainty(uncertainty: Uncertainty) -> dict[str, float]:
    """Returns the means over the examples of all measures of uncertainty."""
    return {name: float(values.mean()) for name, values in uncertainty._asdict().items()}


def mean_and_std(members: Sequence[dict[str, Any]]) -> tuple[dict[str, float], dict[str, float]]:
    """Returns the mean and the sample standard deviation over the members of their metrics."""
    table: Float[np.ndarray, "members keys"] = np.array([[m[key] for key in KEYS] for m in members])
    std = table.std(0, ddof=1) if len(table) > 1 else np.zeros(len(KEYS))
    means, stds = table.mean(0).tolist(), std.tolist()
    return dict(zip(KEYS, means, strict=True)), dict(zip(KEYS, stds, strict=True))
