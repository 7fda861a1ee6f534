"""Detection of out-of-distribution examples by a score; out-of-distribution is the positive class.

Each score is larger for examples that look less like the training data. A single network
is passed as one member.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from resflax.metrics.bootstrap import Counts, Statistic
from resflax.metrics.checks import check_finite, check_members
from resflax.metrics.scores import log_mean_probability, log_softmax
from resflax.metrics.uncertainty import entropy, mutual_information

TRUE_POSITIVE_RATE = 0.95


class Detection(NamedTuple):
    """How well a score separates two sets of examples.

    Attributes:
      auroc: area under the ROC curve.
      aupr: average precision.
      fpr95: false positive rate at a true positive rate of 95 %.
    """

    auroc: float
    aupr: float
    fpr95: float


class Prediction(NamedTuple):
    """Logits and log-probabilities that the scores are computed from.

    Attributes:
      logits: of each member, not normalized.
      log_p: log-probabilities of each member.
      mean_log_p: log of the mean of the members' probabilities.
    """

    logits: Float[np.ndarray, "members n classes"]
    log_p: Float[np.ndarray, "members n classes"]
    mean_log_p: Float[np.ndarray, "n classes"]


def max_probability(prediction: Prediction) -> Float[np.ndarray, " n"]:
    """Returns minus the probability of the predicted class (Hendrycks and Gimpel 2017)."""
    return -np.exp(prediction.mean_log_p.max(-1))


def energy(prediction: Prediction) -> Float[np.ndarray, " n"]:
    """Returns the mean over the members of `-log(sum(exp(logits)))`.

    Liu et al. 2020, arXiv:2010.03759, at temperature 1. It needs logits: of log-probabilities it is
    0.
    """
    return (prediction.log_p[..., 0] - prediction.logits[..., 0]).mean(0)


def total_entropy(prediction: Prediction) -> Float[np.ndarray, " n"]:
    """Returns the entropy of the mean of the members' probabilities."""
    return entropy(prediction.mean_log_p)


# Scores of examples: higher for those of other datasets.
OOD_SCORES: dict[str, Callable[[Prediction], Float[np.ndarray, " n"]]] = {
    "max_probability": max_probability,
    "energy": energy,
    "entropy": total_entropy,
    # Entropy of the mean probabilities minus the members' mean entropy.
    "mutual_information": lambda prediction: mutual_information(prediction.log_p),
}


def ood_scores(
    logits: Float[np.ndarray, "members n classes"],
) -> dict[str, Float[np.ndarray, " n"]]:
    """Computes all scores of `OOD_SCORES` for each example, in float64.

    Args:
      logits: the members' logits, not normalized.

    Raises:
      ValueError: if the shape is another.
    """
    logits = np.asarray(check_members(logits), np.float64)
    log_p = log_softmax(logits)
    prediction = Prediction(logits, log_p, log_mean_probability(log_p))
    return {name: score(prediction) for name, score in OOD_SCORES.items()}


def detection(
    in_scores: Float[np.ndarray, " inside"], out_scores: Float[np.ndarray, " outside"]
) -> Detection:
    """Computes all metrics of detection.

    Args:
      in_scores: scores of examples of the training distribution.
      out_scores: scores of examples of another one, which should be larger.

    Raises:
      ValueError: if one is empty, or a score is not finite.

    >>> detection(np.array([0.1, 0.2, 0.3, 0.6]), np.array([0.5, 0.7]))
    Detection(auroc=0.875, aupr=0.8333333333333333, fpr95=0.25)
    """
    statistic = detection_statistic(in_scores, out_scores)
    once = (np.ones((1, np.size(scores)), np.int64) for scores in (in_scores, out_scores))
    return Detection(*statistic(*once)[0].tolist())


def detection_statistic(
    in_scores: Float[np.ndarray, " inside"], out_scores: Float[np.ndarray, " outside"]
) -> Statistic:
    """Makes the statistic of `bootstrap_interval` that is `Detection`, `(samples, 3)`.

    Its arguments say how often each example inside and outside is drawn.

    Args:
      in_scores: see `detection`.
      out_scores: see `detection`.

    Raises:
      ValueError: as `detection`.
    """
    inside, outside = check_finite("in_scores", in_scores), check_finite("out_scores", out_scores)
    scores = np.concatenate([inside.ravel(), outside.ravel()])
    order = np.argsort(-scores, kind="stable")
    is_out = order >= inside.size
    starts = np.append(0, np.flatnonzero(np.diff(scores[order])) + 1)  # of equal scores

    def statistic(in_counts: Counts, out_counts: Counts) -> Float[np.ndarray, "samples 3"]:
        drawn = np.concatenate([in_counts, out_counts], 1)[:, order]
        # Numbers of true and false positives at falling thresholds.
        true = np.add.reduceat(drawn * is_out, starts, 1).cumsum(1)
        false = np.add.reduceat(drawn * ~is_out, starts, 1).cumsum(1)
        positives, negatives = outside.size, inside.size
        rise, step = np.diff(true, prepend=0), np.diff(false, prepend=0)
        precision = true / np.maximum(true + false, 1)
        reached = (true / positives >= TRUE_POSITIVE_RATE).argmax(1)[:, None]
        # In integers up to the division: trapezoids under the ROC curve.
        auroc = (step * (2 * true - rise)).sum(1) / (2 * positives * negatives)
        aupr = (rise * precision).sum(1) / positives
        fpr95 = np.take_along_axis(false, reached, 1)[:, 0] / negatives
        return np.stack([auroc, aupr, fpr95], 1)

    return statistic


def auroc(
    in_scores: Float[np.ndarray, " inside"], out_scores: Float[np.ndarray, " outside"]
) -> float:
    """Returns the probability that an out-of-distribution example has the larger score.

    Equal scores count as one half.
    """
    return detection(in_scores, out_scores).auroc


def aupr(
    in_scores: Float[np.ndarray, " inside"], out_scores: Float[np.ndarray, " outside"]
) -> float:
    """Returns the average precision, the sum of `(recall - previous recall) * precision`.

    Out-of-distribution is positive. A random score has the share of out-of-distribution examples.
    """
    return detection(in_scores, out_scores).aupr


def fpr95(
    in_scores: Float[np.ndarray, " inside"], out_scores: Float[np.ndarray, " outside"]
) -> float:
    """Returns the share of in-distribution examples that are taken for out-of-distribution.

    At the largest threshold that detects at least 95 % of the out-of-distribution examples.
    """
    return detection(in_scores, out_scores).fpr95
