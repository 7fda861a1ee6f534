"""Uncertainty of an ensemble for each example, from the log-probabilities of its members.

The entropy of the mean prediction is the total uncertainty: the sum of the expected entropy of a
member's prediction (aleatoric) and the mutual information of prediction and member (epistemic),
which is large where the members disagree (Depeweg et al. 2018, arXiv:1710.07283; Smith and Gal
2018, arXiv:1803.08533). All are in nats, in float64.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from resflax.metrics.checks import check_members
from resflax.metrics.scores import log_mean_probability


class Uncertainty(NamedTuple):
    """Measures of an ensemble's uncertainty, for each example.

    Attributes:
      total_entropy: entropy of the mean of the members' probabilities.
      expected_entropy: mean of the members' entropies.
      mutual_information: `total_entropy - expected_entropy`, at least 0.
      disagreement: share of the pairs of members whose predictions differ; 0 for one member.
      pairwise_kl: mean of KL(p, q) over ordered pairs of different members; 0 for one member.
    """

    total_entropy: Float[np.ndarray, " n"]
    expected_entropy: Float[np.ndarray, " n"]
    mutual_information: Float[np.ndarray, " n"]
    disagreement: Float[np.ndarray, " n"]
    pairwise_kl: Float[np.ndarray, " n"]


def ensemble_uncertainty(log_p: Float[np.ndarray, "members n classes"]) -> Uncertainty:
    """Computes all measures of uncertainty.

    Args:
      log_p: log-probabilities, normalized; `-inf` for a probability of 0.

    Raises:
      ValueError: if the shape is another.

    >>> with np.errstate(divide="ignore"):
    ...     log_p = np.log([[[1.0, 0.0]], [[0.0, 1.0]]])  # two members, sure of different classes
    >>> measures = ensemble_uncertainty(log_p)
    >>> measures.mutual_information.round(4), measures.disagreement, measures.pairwise_kl
    (array([0.6931]), array([1.]), array([inf]))
    """
    log_p = np.asarray(check_members(log_p), np.float64)
    p = np.exp(log_p)
    entropies, total = _entropy(p, log_p), entropy(log_mean_probability(log_p))
    return Uncertainty(
        total_entropy=total,
        expected_entropy=entropies.mean(0),
        mutual_information=np.maximum(total - entropies.mean(0), 0),  # negative by rounding only
        disagreement=disagreement(log_p),
        pairwise_kl=_pairwise_kl(p, log_p, entropies),
    )


def entropy(log_p: Float[np.ndarray, "*n classes"]) -> Float[np.ndarray, "*n"]:
    """Returns the entropy of each distribution.

    >>> entropy(np.log([[0.5, 0.5], [0.9, 0.1]])).round(4)
    array([0.6931, 0.3251])
    """
    log_p = np.asarray(log_p, np.float64)
    return _entropy(np.exp(log_p), log_p)


def _entropy(
    p: Float[np.ndarray, "*n classes"], log_p: Float[np.ndarray, "*n classes"]
) -> Float[np.ndarray, "*n"]:
    return -np.einsum("...c,...c->...", p, np.where(p > 0, log_p, 0))


def expected_entropy(log_p: Float[np.ndarray, "members n classes"]) -> Float[np.ndarray, " n"]:
    """Returns the mean over the members of the entropy of their predictions."""
    return entropy(check_members(log_p)).mean(0)


def mutual_information(log_p: Float[np.ndarray, "members n classes"]) -> Float[np.ndarray, " n"]:
    """Returns the entropy of the mean prediction minus the members' mean entropy.

    It is the Jensen-Shannon divergence of the members' predictions, at most the logarithm of the
    number of members (Houlsby et al. 2011, arXiv:1112.5745, equation 2; Lakshminarayanan et al.
    2017, arXiv:1612.01474).
    """
    total = entropy(log_mean_probability(np.asarray(check_members(log_p), np.float64)))
    return np.maximum(total - expected_entropy(log_p), 0)


def disagreement(log_p: Float[np.ndarray, "members n classes"]) -> Float[np.ndarray, " n"]:
    """Returns the share of the pairs of members that predict different classes.

    Its mean over the examples is the mean over the pairs of the share of examples on which a pair
    disagrees (Fort et al. 2019, arXiv:1912.02757, there divided by the error). It is 0 for
    one member.
    """
    predictions = check_members(log_p).argmax(-1)
    members, examples = predictions.shape
    differ = np.zeros(examples)
    for i in range(members):
        differ += (predictions[i] != predictions[i + 1 :]).sum(0)
    return differ / max(members * (members - 1) / 2, 1)


def pairwise_kl(log_p: Float[np.ndarray, "members n classes"]) -> Float[np.ndarray, " n"]:
    """Returns the mean of KL(p, q) over all ordered pairs of different members.

    It is 0 for one member, and infinite if a member excludes a class that another one does not.
    """
    log_p = np.asarray(check_members(log_p), np.float64)
    p = np.exp(log_p)
    return _pairwise_kl(p, log_p, _entropy(p, log_p))


def _pairwise_kl(
    p: Float[np.ndarray, "members n classes"],
    log_p: Float[np.ndarray, "members n classes"],
    entropies: Float[np.ndarray, "members n"],
) -> Float[np.ndarray, " n"]:
    """Returns the mean over the pairs without a loop over them.

    With M members, the sum over the pairs is M times the sum of p log p minus the product of the
    sums of p and of log q.
    """
    members, sum_of_p = len(p), p.sum(0)
    if members == 1:
        return np.zeros(p.shape[1])
    sum_of_logs = np.where(sum_of_p > 0, log_p.sum(0), 0)
    cross = np.einsum("nc,nc->n", sum_of_p, sum_of_logs)
    total = -members * entropies.sum(0) - cross
    return np.maximum(total, 0) / (members * (members - 1))
