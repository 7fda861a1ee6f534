"""Metrics of a classifier from its log-probabilities, in float64 on the host.

An evaluation reduces each batch to `ExampleScores`, a few numbers per example, so that memory does
not grow with the number of classes; `summarize` computes every metric from them.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

TOP = 5
BINS = 15


class ExampleScores(NamedTuple):
    """What the metrics need of each example.

    Attributes:
      label: the true class.
      top: the `TOP` most probable classes, most probable first; fewer if there are fewer classes.
      top_probability: their probabilities.
      label_log_probability: log-probability of the true class, in nats.
      sum_of_squares: sum of the squared probabilities of all classes.
    """

    label: Int[np.ndarray, " n"]
    top: Int[np.ndarray, "n top"]
    top_probability: Float[np.ndarray, "n top"]
    label_log_probability: Float[np.ndarray, " n"]
    sum_of_squares: Float[np.ndarray, " n"]

    @property
    def prediction(self) -> Int[np.ndarray, " n"]:
        """The most probable class; of equally probable ones, the first."""
        return self.top[:, 0]

    @property
    def confidence(self) -> Float[np.ndarray, " n"]:
        """The probability of the prediction."""
        return self.top_probability[:, 0]

    @property
    def is_correct(self) -> Bool[np.ndarray, " n"]:
        """Whether the prediction is the label."""
        return self.prediction == self.label


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
        gap = np.abs(self.accuracy - self.confidence)
        return float((self.examples * gap).sum() / self.examples.sum())


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


def log_softmax(logits: Float[np.ndarray, "*n classes"]) -> Float[np.ndarray, "*n classes"]:
    """Returns log-probabilities in float64.

    >>> log_softmax(np.zeros((1, 4))).round(4).tolist()  # log 1/4
    [[-1.3863, -1.3863, -1.3863, -1.3863]]
    """
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def mean_log_probability(
    log_probabilities: Float[np.ndarray, "views *n classes"],
) -> Float[np.ndarray, "*n classes"]:
    """Returns the logarithm of the mean over the views of the probabilities."""
    largest = log_probabilities.max(0)
    return largest + np.log(np.exp(log_probabilities - largest).mean(0))


def score_examples(
    log_probabilities: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]
) -> ExampleScores:
    """Reduces log-probabilities to the numbers that the metrics need.

    Args:
      log_probabilities: of any float dtype; logits also work, and are normalized here.
      labels: the true classes.
    """
    log_p = log_softmax(log_probabilities)
    top = np.argsort(-log_p, axis=-1, kind="stable")[:, :TOP]
    rows = np.arange(len(labels))
    return ExampleScores(
        label=np.asarray(labels, np.int64),
        top=top,
        top_probability=np.exp(np.take_along_axis(log_p, top, -1)),
        label_log_probability=log_p[rows, labels],
        sum_of_squares=np.exp(2 * log_p).sum(-1),
    )


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
    # |p - onehot|^2 = sum(p^2) - 2 p[label] + 1
    brier = scores.sum_of_squares - 2 * np.exp(scores.label_log_probability) + 1
    return Metrics(
        examples=examples,
        correct=correct,
        accuracy=correct / examples,
        top5=float((scores.top == scores.label[:, None]).any(-1).mean()),
        nll=float(-scores.label_log_probability.mean()),
        brier=float(brier.mean()),
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


def equal_width_bins(scores: ExampleScores, bins: int = BINS) -> Bins:
    """Groups examples by confidence into the intervals `(i / bins, (i + 1) / bins]`."""
    edges = np.linspace(0, 1, bins + 1)
    # Confidences can exceed 1 by rounding.
    index = np.clip(np.searchsorted(edges, scores.confidence, side="left") - 1, 0, bins - 1)
    return _group(scores, index, bins)


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
