"""Selective classification: the error among the examples that a classifier does not reject."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from resflax.metrics.checks import check_finite


class RiskCoverage(NamedTuple):
    """The risk-coverage curve of a classifier (El-Yaniv and Wiener 2010).

    Attributes:
      coverage: shares 1/n, 2/n, ..., 1 of the examples that are kept, the most confident ones.
      risk: share of the kept examples that are classified incorrectly.
    """

    coverage: Float[np.ndarray, " n"]
    risk: Float[np.ndarray, " n"]

    @property
    def area(self) -> float:
        """AURC: mean of the risk over the n coverages (Geifman et al. 2019, arXiv:1805.08206)."""
        return float(self.risk.mean())

    @property
    def excess_area(self) -> float:
        """E-AURC: the area minus that of an order with all errors last (same source).

        The optimal area is computed exactly, not by its approximation `r + (1 - r) log(1 - r)`.
        """
        n = len(self.risk)
        errors = round(float(self.risk[-1]) * n)
        covered_errors = np.maximum(np.arange(1, n + 1) - (n - errors), 0)
        return self.area - float((covered_errors / np.arange(1, n + 1)).mean())


def risk_coverage(
    confidence: Float[np.ndarray, " n"], is_correct: Bool[np.ndarray, " n"]
) -> RiskCoverage:
    """Computes the risk at each coverage, the most confident examples first.

    Examples of equal confidence are counted at their mean error, that is, in random order, so that
    the order of the dataset has no effect.

    Args:
      confidence: any score that is larger for examples of which the classifier is surer.
      is_correct: whether the prediction is the label.

    Raises:
      ValueError: if the arrays are empty or of different lengths, or a confidence is not finite.

    >>> curve = risk_coverage(np.array([0.9, 0.6, 0.8]), np.array([True, False, True]))
    >>> curve.risk.round(4), round(curve.area, 4)
    (array([0.    , 0.    , 0.3333]), 0.1111)
    """
    confidence = check_finite("confidence", confidence)
    error = ~np.asarray(is_correct, bool)
    if confidence.ndim != 1 or error.shape != confidence.shape:
        raise ValueError(
            f"confidence and is_correct have the shapes {confidence.shape} and {error.shape}: "
            "expected one dimension and equal lengths"
        )
    order = np.argsort(-confidence, kind="stable")
    ordered, errors = confidence[order], np.concatenate([[0], np.cumsum(error[order])])
    # Within examples of equal confidence the number of errors rises linearly.
    ends = np.concatenate([[0], np.flatnonzero(np.diff(ordered)) + 1, [len(ordered)]])
    covered = np.arange(1, len(ordered) + 1)
    return RiskCoverage(covered / len(ordered), np.interp(covered, ends, errors[ends]) / covered)
