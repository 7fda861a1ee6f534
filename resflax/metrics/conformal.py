"""Conformal prediction: sets of classes that contain the label with a chosen probability.

Split conformal prediction computes a score of the label of each held-out example, and takes as
threshold the `ceil((n + 1) (1 - alpha))`-th smallest one. The set of a new example has the classes
whose score is at most the threshold. If new and held-out examples are exchangeable, it contains the
label with probability at least `1 - alpha`, however bad the classifier is (Vovk et al. 2005;
Angelopoulos and Bates 2023, arXiv:2107.07511, section 1).

    uniform = np.random.default_rng(seed).random(len(labels))
    threshold = conformal_threshold(label_scores("aps", held_out, labels, uniform), alpha=0.1)
    sets = prediction_sets("aps", test, threshold, another_uniform)
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from resflax.metrics.checks import check_finite, check_labels, check_logits
from resflax.metrics.scores import log_softmax

# RAPS adds PENALTY to the score for each class beyond the FREE_CLASSES most probable ones.
PENALTY = 0.1
FREE_CLASSES = 1

Probabilities = Float[np.ndarray, "n classes"]
Score = Callable[[Probabilities, Float[np.ndarray, "n 1"]], Float[np.ndarray, "n classes"]]


class Sets(NamedTuple):
    """Prediction sets of examples, without the classes in them.

    Attributes:
      covered: whether the set contains the label.
      size: number of classes in the set.
    """

    covered: Bool[np.ndarray, " n"]
    size: Int[np.ndarray, " n"]


class SetSummary(NamedTuple):
    """Prediction sets over a set of examples.

    Attributes:
      coverage: share of the examples whose set contains the label.
      mean_size: mean number of classes in a set.
      empty: share of the examples with an empty set.
    """

    coverage: float
    mean_size: float
    empty: float


def lac(p: Probabilities, uniform: Float[np.ndarray, "n 1"]) -> Float[np.ndarray, "n classes"]:
    """Returns one minus the probability: the smallest sets on average (Sadinle et al. 2019)."""
    del uniform
    return 1 - p


def aps(p: Probabilities, uniform: Float[np.ndarray, "n 1"]) -> Float[np.ndarray, "n classes"]:
    """Returns the sum of the probabilities down to that of the class, which counts `uniform` times.

    Adaptive prediction sets: Romano et al. 2020, arXiv:2006.02544.
    """
    return _sum_of_larger(p, _order(p)) + uniform * p


def raps(p: Probabilities, uniform: Float[np.ndarray, "n 1"]) -> Float[np.ndarray, "n classes"]:
    """Returns the score of `aps` plus a penalty for improbable classes, for smaller sets.

    Regularized adaptive prediction sets: Angelopoulos et al. 2021, arXiv:2009.14193, with
    lambda 0.1 (`PENALTY`) and k_reg 1 (`FREE_CLASSES`).
    """
    order = _order(p)
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(1, p.shape[1] + 1)[None], -1)
    penalty = PENALTY * np.maximum(rank - FREE_CLASSES, 0)
    return _sum_of_larger(p, order) + uniform * p + penalty


def _order(p: Probabilities) -> Int[np.ndarray, "n classes"]:
    return np.argsort(-p, axis=-1, kind="stable")


def _sum_of_larger(
    p: Probabilities, order: Int[np.ndarray, "n classes"]
) -> Float[np.ndarray, "n classes"]:
    """Returns for each class the sum of the probabilities of the classes before it in `order`."""
    ordered = np.take_along_axis(p, order, -1)
    sums = np.empty_like(p)
    np.put_along_axis(sums, order, np.cumsum(ordered, -1) - ordered, -1)
    return sums


# Scores of the classes: a prediction set has those of at most a threshold.
CONFORMAL_SCORES: dict[str, Score] = {"lac": lac, "aps": aps, "raps": raps}


def conformal_scores(
    method: str,
    logits: Float[np.ndarray, "n classes"],
    uniform: Float[np.ndarray, " n"] | None = None,
) -> Float[np.ndarray, "n classes"]:
    """Returns the score of each class: small for those that belong in the set.

    Args:
      method: a name of `CONFORMAL_SCORES`.
      logits: logits or log-probabilities.
      uniform: a uniform random number from 0 to 1 for each example, which `aps` and `raps` use to
        reach the coverage exactly; none for 1, with sets that are larger than they need be.

    Raises:
      ValueError: if the method is unknown, or shapes do not fit.

    >>> conformal_scores("aps", np.log([[0.6, 0.1, 0.3]])).round(2)
    array([[0.6, 1. , 0.9]])
    """
    if method not in CONFORMAL_SCORES:
        raise ValueError(f"conformal method {method!r}: expected {', '.join(CONFORMAL_SCORES)}")
    p = np.exp(log_softmax(check_logits(logits)))
    weights = np.ones(len(p)) if uniform is None else np.asarray(uniform, np.float64)
    if weights.shape != (len(p),):
        raise ValueError(f"uniform has the shape {weights.shape}: expected ({len(p)},)")
    return CONFORMAL_SCORES[method](p, weights[:, None])


def label_scores(
    method: str,
    logits: Float[np.ndarray, "n classes"],
    labels: Int[np.ndarray, " n"],
    uniform: Float[np.ndarray, " n"] | None = None,
) -> Float[np.ndarray, " n"]:
    """Returns the score of each example's label, see `conformal_scores`."""
    scores = conformal_scores(method, logits, uniform)
    labels = check_labels(labels, *scores.shape)
    return scores[np.arange(len(labels)), labels]


def conformal_threshold(scores: Float[np.ndarray, " n"], alpha: float) -> float:
    """Returns the threshold for sets that miss the label with probability at most `alpha`.

    Args:
      scores: scores of the labels of held-out examples.
      alpha: between 0 and 1.

    Returns:
      The `ceil((n + 1) (1 - alpha))`-th smallest score; infinity, for sets of all classes, if there
      are too few scores.

    Raises:
      ValueError: if there are no scores, one is not finite, or alpha is out of range.

    >>> conformal_threshold(np.arange(19) / 19, alpha=0.1) * 19  # the 18th of 19
    17.0
    """
    scores = check_finite("scores", scores)
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}: expected a number between 0 and 1")
    # Rounded, since (n + 1) (1 - alpha) is an integer for usual values, and not exact in binary.
    rank = math.ceil(round((scores.size + 1) * (1 - alpha), 9))
    return float(np.sort(scores.ravel())[rank - 1]) if rank <= scores.size else math.inf


def prediction_sets(
    method: str,
    logits: Float[np.ndarray, "n classes"],
    threshold: float,
    uniform: Float[np.ndarray, " n"] | None = None,
) -> Bool[np.ndarray, "n classes"]:
    """Returns which classes are in the set of each example.

    Args:
      method: a name of `CONFORMAL_SCORES`, as for the threshold.
      logits: logits or log-probabilities.
      threshold: made by `conformal_threshold`.
      uniform: see `conformal_scores`; independent of that of the held-out examples.

    Empty sets are usual where the accuracy is above `1 - alpha`.
    """
    return conformal_scores(method, logits, uniform) <= threshold


def reduce_sets(sets: Bool[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]) -> Sets:
    """Reduces the sets of a batch to what their summary needs of each example.

    Raises:
      ValueError: if shapes do not fit, or a label is out of range.
    """
    sets = np.asarray(check_logits(sets), bool)
    labels = check_labels(labels, *sets.shape)
    return Sets(sets[np.arange(len(labels)), labels], sets.sum(-1))


def summarize_sets(sets: Sets) -> SetSummary:
    """Computes coverage and size of prediction sets."""
    return SetSummary(
        coverage=float(sets.covered.mean()),
        mean_size=float(sets.size.mean()),
        empty=float((sets.size == 0).mean()),
    )
