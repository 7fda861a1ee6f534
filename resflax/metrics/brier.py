"""The Brier score as reliability, resolution and uncertainty."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from resflax.metrics.calibration import BINS
from resflax.metrics.checks import check_labels, check_logits
from resflax.metrics.scores import log_softmax


class BrierDecomposition(NamedTuple):
    """Parts of the Brier score: `brier = reliability - resolution + uncertainty`, exactly.

    Attributes:
      reliability: mean squared distance of probability and frequency in a group; 0 is calibrated.
      resolution: variance of the groups' frequencies, less the spread of the probabilities within a
        group that does not follow the labels; the larger, the better.
      uncertainty: variance of the labels, the Brier score of a classifier that always predicts the
        frequencies of the classes. It does not depend on the classifier.
    """

    reliability: float
    resolution: float
    uncertainty: float

    @property
    def brier(self) -> float:
        """The Brier score, as `Metrics.brier`."""
        return self.reliability - self.resolution + self.uncertainty


class BrierSums(NamedTuple):
    """Sums over examples, by class and by bin of the class's probability.

    They do not grow with the number of examples; those of batches are added up.

    Attributes:
      examples: number of examples.
      p: sum of the probabilities.
      label: number of examples whose label is the class.
      p_p: sum of the squared probabilities.
      p_label: sum of the probabilities of the examples whose label is the class.
    """

    examples: Float[np.ndarray, "classes bins"]
    p: Float[np.ndarray, "classes bins"]
    label: Float[np.ndarray, "classes bins"]
    p_p: Float[np.ndarray, "classes bins"]
    p_label: Float[np.ndarray, "classes bins"]

    def add(self, other: "BrierSums") -> "BrierSums":
        """Returns the sums over the examples of both."""
        return BrierSums(*(a + b for a, b in zip(self, other, strict=True)))


def brier_sums(
    logits: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"], bins: int = BINS
) -> BrierSums:
    """Sums the examples of a batch by class and by bin of equal width.

    Args:
      logits: logits or log-probabilities.
      labels: the true classes.
      bins: number of bins `[i / bins, (i + 1) / bins)`; the last one has its upper edge.

    Raises:
      ValueError: if shapes do not fit, a label is out of range, or there is no bin.
    """
    p = np.exp(log_softmax(check_logits(logits)))
    labels = check_labels(labels, *p.shape)
    if bins < 1:
        raise ValueError(f"bins is {bins}: expected at least 1")
    classes = p.shape[1]
    index = np.minimum((p * bins).astype(np.int64), bins - 1) + bins * np.arange(classes)
    rows = np.arange(len(p)), labels

    def sums(
        index: Int[np.ndarray, "*n"], weights: Float[np.ndarray, "*n"] | None = None
    ) -> Float[np.ndarray, "classes bins"]:
        flat = None if weights is None else weights.ravel()
        total = np.bincount(index.ravel(), flat, minlength=classes * bins)
        return total.astype(np.float64).reshape(classes, bins)

    return BrierSums(
        examples=sums(index),
        p=sums(index, p),
        label=sums(index[rows]),
        p_p=sums(index, np.square(p)),
        p_label=sums(index[rows], p[rows]),
    )


def brier_decomposition(sums: BrierSums) -> BrierDecomposition:
    """Decomposes the Brier score of all classes (Murphy 1973), as the sum over the classes.

    Murphy's identity holds if the probabilities in a group are equal. Here the groups are bins of
    the probability of a class, so the within-bin variance and covariance of Stephenson et al. 2008
    (Two extra components in the Brier score decomposition) are part of the resolution, which they
    call generalized; they vanish where the probabilities in each bin are equal.

    Args:
      sums: made by `brier_sums`, of one or more examples.

    >>> logits, labels = np.log([[0.8, 0.2]] * 5), np.array([0, 0, 0, 0, 1])
    >>> parts = brier_decomposition(brier_sums(logits, labels))  # calibrated, and no resolution
    >>> round(abs(parts.reliability), 9), round(abs(parts.resolution), 9), parts.uncertainty
    (0.0, 0.0, 0.32)
    """
    total = sums.examples[0].sum()
    divisor = np.maximum(sums.examples, 1)
    p, frequency = sums.p / divisor, sums.label / divisor
    base = sums.label.sum(-1) / total
    reliability = (sums.examples * np.square(p - frequency)).sum() / total
    between = (sums.examples * np.square(frequency - base[:, None])).sum() / total
    variance = (sums.p_p - sums.examples * np.square(p)).sum() / total
    covariance = (sums.p_label - sums.examples * p * frequency).sum() / total
    return BrierDecomposition(
        reliability=float(reliability),
        resolution=float(between - variance + 2 * covariance),
        uncertainty=float((base * (1 - base)).sum()),
    )
