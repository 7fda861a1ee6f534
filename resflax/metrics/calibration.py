"""Calibration of a classifier: examples grouped by confidence."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from resflax.metrics.scores import ExampleScores

BINS = 15


class Bins(NamedTuple):
    """Examples grouped by confidence, from the lowest; empty bins have zeros.

    Attributes:
      examples: number of examples.
      accuracy: share of them that are classified correctly.
      confidence: mean confidence.
    """

    examples: Int[np.ndarray, " bins"]
    accuracy: Float[np.ndarray, " bins"]
    confidence: Float[np.ndarray, " bins"]

    @property
    def calibration_error(self) -> float:
        """Mean over the examples of `|accuracy - confidence|` of their bin."""
        gaps = self.examples * (self.accuracy - self.confidence)
        return float(expected_gap(gaps, self.examples.sum()))


def expected_gap(gaps: Float[np.ndarray, "*n bins"], examples: float) -> Float[np.ndarray, "*n"]:
    """Returns the expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 3).

    Args:
      gaps: sum over the examples of each bin of 1 if the prediction is correct, else 0, minus the
        confidence.
      examples: number of examples in all bins.
    """
    return np.abs(gaps).sum(-1) / examples


def equal_width_bins(scores: ExampleScores, bins: int = BINS) -> Bins:
    """Groups examples by confidence into the intervals `(i / bins, (i + 1) / bins]`."""
    return _group(scores, width_bin_index(scores, bins), bins)


def width_bin_index(scores: ExampleScores, bins: int = BINS) -> Int[np.ndarray, " n"]:
    """Returns the interval `(i / bins, (i + 1) / bins]` of each example's confidence."""
    edges = np.linspace(0, 1, bins + 1)
    # Confidences can exceed 1 by rounding.
    return np.clip(np.searchsorted(edges, scores.confidence, side="left") - 1, 0, bins - 1)


def equal_mass_bins(scores: ExampleScores, bins: int = BINS) -> Bins:
    """Groups examples by confidence into bins whose sizes differ by at most one."""
    order = np.lexsort((scores.is_correct, scores.confidence))
    index = np.empty(len(order), np.int64)
    for i, part in enumerate(np.array_split(order, bins)):
        index[part] = i
    return _group(scores, index, bins)


def _group(scores: ExampleScores, index: Int[np.ndarray, " n"], bins: int) -> Bins:
    count = np.bincount(index, minlength=bins)
    divisor = np.maximum(count, 1)
    correct = np.bincount(index, scores.is_correct, minlength=bins)
    confidence = np.bincount(index, scores.confidence, minlength=bins)
    return Bins(count, correct / divisor, confidence / divisor)
