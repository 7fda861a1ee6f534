"""Ensembles of some members: metrics against ensemble size, and greedy selection of members."""

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from resflax.metrics.checks import check_finite, check_labels, check_members
from resflax.metrics.scores import log_mean_probability, log_softmax
from resflax.metrics.temperature import apply_temperature

# Most subsets of one size that a size curve averages over.
MAX_SUBSETS = 32
# Likelihoods that differ relatively by less are equal: more than rounding.
TOLERANCE = 1e-9

Subset = tuple[int, ...]


class SubsetSums(NamedTuple):
    """Sums over examples for each of several subsets of members; those of batches are added up.

    Attributes:
      examples: number of examples.
      correct: number of examples that the subset's ensemble classifies correctly.
      nll: sum of its negative log-likelihoods, in nats.
      scaled_nll: the same after temperature scaling; NaN without temperatures.
    """

    examples: int
    correct: Int[np.ndarray, " subsets"]
    nll: Float[np.ndarray, " subsets"]
    scaled_nll: Float[np.ndarray, " subsets"]

    def add(self, other: "SubsetSums") -> "SubsetSums":
        """Returns the sums over the examples of both."""
        return SubsetSums(
            self.examples + other.examples,
            self.correct + other.correct,
            self.nll + other.nll,
            self.scaled_nll + other.scaled_nll,
        )


class SizeCurve(NamedTuple):
    """Mean over the subsets of k members, for k = 1, 2, ...

    Attributes:
      size: k.
      accuracy: accuracy of the mean prediction.
      nll: negative log-likelihood of the mean prediction, in nats.
      scaled_nll: the same after temperature scaling; NaN without temperatures.
    """

    size: Int[np.ndarray, " sizes"]
    accuracy: Float[np.ndarray, " sizes"]
    nll: Float[np.ndarray, " sizes"]
    scaled_nll: Float[np.ndarray, " sizes"]


class Selection(NamedTuple):
    """Members in the order in which they were added.

    Attributes:
      members: their indices.
      nll: negative log-likelihood of the ensemble after each addition, in nats.
    """

    members: Subset
    nll: tuple[float, ...]


def member_subsets(members: int, *, max_subsets: int = MAX_SUBSETS, seed: int = 0) -> list[Subset]:
    """Returns subsets of the members, of each size from 1 to all.

    Args:
      members: number of members.
      max_subsets: maximum number of subsets of each size; if there are more, they are a random
        sample without repetition.
      seed: of the random subsets.

    >>> member_subsets(3)
    [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    """
    if members < 1 or max_subsets < 1:
        raise ValueError(
            f"members is {members} and max_subsets {max_subsets}: expected at least 1 of both"
        )
    rng, subsets = np.random.default_rng(seed), list[Subset]()
    for size in range(1, members + 1):
        if math.comb(members, size) <= max_subsets:
            subsets += combinations(range(members), size)
            continue
        drawn = set[Subset]()
        while len(drawn) < max_subsets:
            drawn.add(tuple(sorted(rng.choice(members, size, replace=False).tolist())))
        subsets += sorted(drawn)
    return subsets


def subset_sums(
    logits: Float[np.ndarray, "members n classes"],
    labels: Int[np.ndarray, " n"],
    subsets: Sequence[Subset],
    temperatures: Sequence[float] | None = None,
) -> SubsetSums:
    """Evaluates the ensembles of subsets of the members on a batch.

    Args:
      logits: logits or log-probabilities of all members.
      labels: the true classes.
      subsets: indices of the members of each subset.
      temperatures: of each subset's mean prediction, fitted on held-out examples.

    Raises:
      ValueError: if shapes do not fit, or a label is out of range.
    """
    log_p = log_softmax(check_members(logits))
    rows = np.arange(log_p.shape[1]), check_labels(labels, *log_p.shape[1:])
    if temperatures is not None and len(temperatures) != len(subsets):
        raise ValueError(f"{len(temperatures)} temperatures for {len(subsets)} subsets")
    correct, nll, scaled = np.zeros(len(subsets), np.int64), [], []
    label_log_p = log_p[:, *rows]
    for i, mean in enumerate(_subset_means(log_p, subsets)):
        mean[rows] = log_mean_probability(label_log_p[list(subsets[i])])  # also if it underflows
        correct[i] = (mean.argmax(-1) == rows[1]).sum()
        nll.append(-mean[rows].sum())
        if temperatures is not None:
            scaled.append(-apply_temperature(mean, temperatures[i])[rows].sum())
    no_scaling = np.full(len(subsets), np.nan)
    return SubsetSums(
        examples=log_p.shape[1],
        correct=correct,
        nll=np.array(nll),
        scaled_nll=np.array(scaled) if temperatures is not None else no_scaling,
    )


def _subset_means(
    log_p: Float[np.ndarray, "members n classes"], subsets: Sequence[Subset]
) -> Iterator[Float[np.ndarray, "n classes"]]:
    """Yields `log_mean_probability` of each subset, with one exponential for all of them."""
    largest = log_p.max(0)
    shifted = np.exp(log_p - largest)
    for subset in subsets:
        total = np.zeros_like(largest)
        for member in subset:
            total += shifted[member]
        mean = np.maximum(total / len(subset), np.finfo(np.float64).tiny)
        yield largest + np.log(mean)


def size_curve(subsets: Sequence[Subset], sums: SubsetSums) -> SizeCurve:
    """Averages the metrics over the subsets of each size.

    Args:
      subsets: made by `member_subsets`.
      sums: made by `subset_sums` for the same subsets.
    """
    lengths = np.array([len(subset) for subset in subsets])
    sizes = np.unique(lengths)
    groups = [lengths == size for size in sizes]

    def mean(values: Float[np.ndarray, " subsets"]) -> Float[np.ndarray, " sizes"]:
        return np.array([values[group].mean() for group in groups]) / sums.examples

    return SizeCurve(sizes, mean(sums.correct), mean(sums.nll), mean(sums.scaled_nll))


def deep_ensemble_equivalent(scaled_nll: float, reference: Float[np.ndarray, " sizes"]) -> float:
    """Returns how many members of a deep ensemble reach a calibrated likelihood.

    The smallest real number of members, at least 1, whose negative log-likelihood after temperature
    scaling is at most `scaled_nll`, interpolated linearly (Ashukha et al. 2020, arXiv:2002.06470).

    Args:
      scaled_nll: negative log-likelihood of any ensemble after temperature scaling.
      reference: that of deep ensembles of 1, 2, ... members, `SizeCurve.scaled_nll`.

    Returns:
      The number of members; infinity if no size of the reference is as good.

    Raises:
      ValueError: if the reference is empty, or a value is not finite.

    >>> deep_ensemble_equivalent(0.35, np.array([0.5, 0.4, 0.3]))
    2.5
    """
    curve = check_finite("reference", reference)
    target = float(check_finite("scaled_nll", scaled_nll))
    margin = TOLERANCE * abs(target)
    reached = np.flatnonzero(curve <= target + margin)
    if not len(reached):
        return math.inf
    i = int(reached[0])
    if i == 0 or target <= curve[i] + margin:
        return float(i + 1)
    return float(i + (curve[i - 1] - target) / (curve[i - 1] - curve[i]))


def greedy_selection(label_log_p: Float[np.ndarray, "members n"], size: int) -> Selection:
    """Adds one member at a time, that which gives the ensemble the lowest held-out loss.

    Caruana et al. 2004, section 2, without replacement: each member is added at most once. (The
    hyper-deep ensembles of Wenzel et al. 2020, arXiv:2006.13570, can add one again.)

    Args:
      label_log_p: log-probability of the label of each held-out example, by member. The loss of a
        mean prediction needs no other class.
      size: number of members, from 1 to all.

    Raises:
      ValueError: if the shape is another, the size is out of range, or a value is NaN.

    >>> label_log_p = np.log([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]])
    >>> greedy_selection(label_log_p, 2).members
    (1, 2)
    """
    log_p = np.asarray(label_log_p, np.float64)
    if log_p.ndim != 2 or not log_p.size or np.isnan(log_p).any():
        raise ValueError(
            f"log-probabilities of the labels have the shape {log_p.shape}: expected (members, "
            "examples), at least 1 each, without NaN"
        )
    if not 1 <= size <= len(log_p):
        raise ValueError(f"size is {size}: expected from 1 to the {len(log_p)} members")
    selected, losses = list[int](), list[float]()
    total = np.full(log_p.shape[1], -np.inf)  # log of the sum of the selected probabilities
    while len(selected) < size:
        nll = -(np.logaddexp(total, log_p).mean(-1) - math.log(len(selected) + 1))
        nll[selected] = np.inf
        best = int(nll.argmin())
        selected.append(best)
        losses.append(float(nll[best]))
        total = np.logaddexp(total, log_p[best])
    return Selection(tuple(selected), tuple(losses))
