"""Metrics of a classifier from the numbers that `score_examples` keeps of each example."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from resflax.metrics.calibration import equal_mass_bins, equal_width_bins
from resflax.metrics.scores import ExampleScores, score_examples


class Metrics(NamedTuple):
    """Metrics over a set of examples.

    Attributes:
      examples: number of examples.
      correct: number of examples whose prediction is the label.
      accuracy: `correct / examples`.
      top5: share of examples whose label is among the five most probable classes.
      nll: mean negative log-likelihood of the label, in nats.
      brier: mean over the examples of the squared distance between the probabilities and the
        one-hot label, from 0 to 2 (Brier 1950, equation 2).
      ece: expected calibration error in 15 bins of equal width (Guo et al. 2017, arXiv:1706.04599,
        equation 3).
      adaptive_ece: the same in 15 bins of equally many examples (Nixon et al. 2019,
        arXiv:1904.01685, section 3.3, for the predicted class only).
      per_class: accuracy among the examples of each class; NaN for a class without examples.
      confusion: number of examples by label (row) and prediction (column).
    """

    examples: int
    correct: int
    accuracy: float
    top5: float
    nll: float
    brier: float
    ece: float
    adaptive_ece: float
    per_class: Float[np.ndarray, " classes"]
    confusion: Int[np.ndarray, "classes classes"]


def summarize(scores: ExampleScores, num_classes: int) -> Metrics:
    """Computes all metrics.

    >>> log_p = np.log(np.array([[0.8, 0.2], [0.6, 0.4]]))
    >>> metrics = summarize(score_examples(log_p, np.array([0, 1])), num_classes=2)
    >>> metrics.accuracy, round(metrics.brier, 6), round(metrics.ece, 6)
    (0.5, 0.4, 0.4)
    """
    examples, correct = len(scores.label), int(scores.is_correct.sum())
    confusion = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(confusion, (scores.label, scores.prediction), 1)
    count = confusion.sum(1)
    per_class = np.where(count, confusion.diagonal() / np.maximum(count, 1), np.nan)
    return Metrics(
        examples=examples,
        correct=correct,
        accuracy=correct / examples,
        top5=float((scores.top == scores.label[:, None]).any(-1).mean()),
        nll=float(-scores.label_log_probability.mean()),
        brier=float(scores.brier.mean()),
        ece=equal_width_bins(scores).calibration_error,
        adaptive_ece=equal_mass_bins(scores).calibration_error,
        per_class=per_class,
        confusion=confusion,
    )


def classification_metrics(
    logits: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]
) -> Metrics:
    """Computes all metrics from the logits or log-probabilities of all examples.

    >>> classification_metrics(np.eye(3), np.array([0, 1, 1])).accuracy.__round__(4)
    0.6667
    """
    return summarize(score_examples(logits, labels), np.shape(logits)[-1])
