"""Metrics of an ensemble and of its members, from log-probabilities batch by batch.

    parts = [score_ensemble(log_p, labels) for log_p, labels in batches]
    metrics = summarize_ensemble(concatenate(parts), num_classes)

A batch of log-probabilities `(members, n, classes)` is reduced to a few numbers per example.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, Int

from resflax.metrics.checks import check_members
from resflax.metrics.classification import Metrics, summarize
from resflax.metrics.risk_coverage import risk_coverage
from resflax.metrics.scores import ExampleScores, log_mean_probability, log_softmax, score_examples
from resflax.metrics.uncertainty import Uncertainty, ensemble_uncertainty

Tree = TypeVar("Tree")


class EnsembleScores(NamedTuple):
    """Per-example values that the metrics of an ensemble are computed from.

    Attributes:
      members: the scores of each member.
      ensemble: the scores of the mean of the members' probabilities.
      uncertainty: measures of uncertainty.
    """

    members: tuple[ExampleScores, ...]
    ensemble: ExampleScores
    uncertainty: Uncertainty


class EnsembleMetrics(NamedTuple):
    """Metrics of an ensemble.

    Attributes:
      members: the metrics of each member.
      ensemble: the metrics of the mean of the members' probabilities.
      uncertainty: each measure of `Uncertainty`, mean over the examples.
      aurc: area under the ensemble's risk-coverage curve, by confidence.
    """

    members: tuple[Metrics, ...]
    ensemble: Metrics
    uncertainty: dict[str, float]
    aurc: float

    def members_mean_std(self, name: str) -> tuple[float, float]:
        """Returns mean and sample standard deviation over the members of one of `Metrics`.

        The standard deviation of one member is 0.
        """
        values = np.array([getattr(metrics, name) for metrics in self.members])
        return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0


def score_ensemble(
    logits: Float[np.ndarray, "members n classes"], labels: Int[np.ndarray, " n"]
) -> EnsembleScores:
    """Reduces the members' logits or log-probabilities to the numbers that the metrics need.

    Raises:
      ValueError: if shapes do not fit, or a label is out of range.
    """
    log_p = log_softmax(check_members(logits))
    return EnsembleScores(
        members=tuple(score_examples(member, labels) for member in log_p),
        ensemble=score_examples(log_mean_probability(log_p), labels),
        uncertainty=ensemble_uncertainty(log_p),
    )


def concatenate(parts: Sequence[Tree]) -> Tree:
    """Joins the scores of batches: tuples, at any depth, of arrays whose first axis is the example.

    Raises:
      ValueError: if there are no parts.
    """
    if not parts:
        raise ValueError("there are no scores to concatenate: expected those of at least one batch")
    return _concatenate(list(parts))


def _concatenate(parts: list[Any]) -> Any:
    first = parts[0]
    if isinstance(first, np.ndarray):
        return np.concatenate(parts)
    fields = [_concatenate(list(values)) for values in zip(*parts, strict=True)]
    return type(first)(*fields) if hasattr(first, "_fields") else tuple(fields)


def summarize_ensemble(scores: EnsembleScores, num_classes: int) -> EnsembleMetrics:
    """Computes the metrics of all members and of the ensemble.

    >>> log_p = np.log([[[0.9, 0.1]], [[0.3, 0.7]]])
    >>> metrics = summarize_ensemble(score_ensemble(log_p, np.array([0])), num_classes=2)
    >>> metrics.ensemble.accuracy, metrics.members_mean_std("accuracy")[0]
    (1.0, 0.5)
    >>> bool(metrics.ensemble.nll <= metrics.members_mean_std("nll")[0])  # Jensen's inequality
    True
    """
    ensemble = scores.ensemble
    return EnsembleMetrics(
        members=tuple(summarize(member, num_classes) for member in scores.members),
        ensemble=summarize(ensemble, num_classes),
        uncertainty={k: float(v.mean()) for k, v in scores.uncertainty._asdict().items()},
        aurc=risk_coverage(ensemble.confidence, ensemble.is_correct).area,
    )
