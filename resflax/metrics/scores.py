"""Log-probabilities, and the few numbers per example that metrics need, in float64 on the host."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from resflax.metrics.checks import check_labels, check_logits

TOP = 5


class ExampleScores(NamedTuple):
    """Per-example values that the metrics are computed from.

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

    @property
    def brier(self) -> Float[np.ndarray, " n"]:
        """The sum over the classes of the squared differences from 1 for the label, else 0."""
        # |p - onehot|^2 = sum(p^2) - 2 p[label] + 1
        return self.sum_of_squares - 2 * np.exp(self.label_log_probability) + 1


def log_softmax(logits: Float[np.ndarray, "*n classes"]) -> Float[np.ndarray, "*n classes"]:
    """Returns log-probabilities in float64.

    >>> log_softmax(np.zeros((1, 4))).round(4).tolist()  # log 1/4
    [[-1.3863, -1.3863, -1.3863, -1.3863]]
    """
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def log_mean_probability(
    log_probabilities: Float[np.ndarray, "views *n classes"],
) -> Float[np.ndarray, "*n classes"]:
    """Returns the logarithm of the mean over the views, or members, of the probabilities."""
    largest = np.maximum(log_probabilities.max(0), np.finfo(np.float64).min)  # not -inf
    with np.errstate(divide="ignore"):  # of a class that all exclude
        return largest + np.log(np.exp(log_probabilities - largest).mean(0))


def score_examples(
    log_probabilities: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]
) -> ExampleScores:
    """Reduces log-probabilities to the numbers that the metrics need.

    Args:
      log_probabilities: of any float dtype; logits also work, and are normalized here.
      labels: the true classes.

    Raises:
      ValueError: if shapes do not fit, or a label is out of range.
    """
    log_p = log_softmax(check_logits(log_probabilities))
    labels = check_labels(labels, *log_p.shape)
    top = _most_probable(log_p)
    rows = np.arange(len(labels))
    return ExampleScores(
        label=labels,
        top=top,
        top_probability=np.exp(np.take_along_axis(log_p, top, -1)),
        label_log_probability=log_p[rows, labels],
        sum_of_squares=np.exp(2 * log_p).sum(-1),
    )


def _most_probable(log_p: Float[np.ndarray, "n classes"]) -> Int[np.ndarray, "n top"]:
    """Returns the `TOP` most probable classes; of equal ones, the first. Sorting all is slower."""
    rows, top = np.arange(len(log_p)), []
    remaining = np.maximum(log_p, np.finfo(np.float64).min)  # -inf marks the classes in `top`
    for _ in range(min(TOP, log_p.shape[1])):
        top.append(remaining.argmax(-1))
        remaining[rows, top[-1]] = -np.inf
    return np.stack(top, -1)
