"""Uncertainty of ensembles, against closed forms, torch-uncertainty's values and definitions."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resflax.metrics import (
    disagreement,
    ensemble_uncertainty,
    entropy,
    expected_entropy,
    log_softmax,
    make_systems,
    mutual_information,
    pairwise_kl,
    score_systems,
)

LOG_2 = np.log(2)


def random_members(members=4, n=30, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    return log_softmax(3 * rng.standard_normal((members, n, classes)))


def log_members(*probabilities):
    """Returns the log-probabilities of members for one example."""
    with np.errstate(divide="ignore"):
        return np.log(np.array(probabilities, float))[:, None]


DISAGREE = log_members([1e-8, 1 - 1e-8], [1 - 1e-8, 1e-8])
AGREE = log_members([0.9, 0.1], [0.9, 0.1])


def test_mutual_information_has_the_values_of_torch_uncertainty():
    """Its tests/metrics/classification/test_mutual_information.py."""
    np.testing.assert_allclose(mutual_information(DISAGREE), LOG_2, rtol=1e-5)
    assert mutual_information(AGREE) == 0
    both = np.concatenate([AGREE, DISAGREE], axis=1)
    np.testing.assert_allclose(mutual_information(both).mean(), LOG_2 / 2, rtol=1e-5)


def test_disagreement_has_the_values_of_torch_uncertainty():
    """Its tests/metrics/classification/test_disagreement.py."""
    assert disagreement(log_members([0, 1], [1, 0])) == 1
    assert disagreement(log_members([1, 0], [1, 0])) == 0
    np.testing.assert_allclose(disagreement(log_members([0, 1], [0, 1], [1, 0])), 2 / 3)


def test_entropy_has_the_values_of_torch_uncertainty():
    """Its tests/metrics/classification/test_entropy.py; a probability of 0 adds nothing."""
    sure = log_members([0, 1], [1, 0])
    assert expected_entropy(sure) == 0
    np.testing.assert_allclose(ensemble_uncertainty(sure).total_entropy, LOG_2)
    np.testing.assert_allclose(entropy(np.log([0.5, 0.5])), LOG_2)


def test_pairwise_kl_is_the_mean_over_ordered_pairs():
    log_p = random_members()
    p = np.exp(log_p)
    pairs = [(p[i] * (log_p[i] - log_p[j])).sum(-1) for i, j in permutations(range(4), 2)]
    np.testing.assert_allclose(pairwise_kl(log_p), np.mean(pairs, 0), rtol=1e-10)


def test_disagreement_is_the_mean_over_pairs():
    log_p = random_members()
    top = log_p.argmax(-1)
    pairs = [top[i] != top[j] for i, j in permutations(range(4), 2)]
    np.testing.assert_allclose(disagreement(log_p), np.mean(pairs, 0))


def test_two_opposed_members_have_closed_forms():
    """Members (p, 1 - p) and (1 - p, p): total log 2, expected H(p), KL (2p - 1) log(p/(1-p))."""
    measures = ensemble_uncertainty(log_members([0.8, 0.2], [0.2, 0.8]))
    h = -0.8 * np.log(0.8) - 0.2 * np.log(0.2)
    np.testing.assert_allclose(measures.total_entropy, LOG_2)
    np.testing.assert_allclose(measures.expected_entropy, h)
    np.testing.assert_allclose(measures.mutual_information, LOG_2 - h)
    np.testing.assert_allclose(measures.pairwise_kl, 0.6 * np.log(4))
    assert measures.disagreement == 1


def test_one_member_has_no_disagreement():
    measures = ensemble_uncertainty(random_members(members=1))
    for values in (measures.mutual_information, measures.disagreement, measures.pairwise_kl):
        np.testing.assert_allclose(values, 0, atol=1e-12)


def test_impossible_class_of_all_members_is_no_error():
    measures = ensemble_uncertainty(log_members([0.5, 0.5, 0], [0.5, 0.5, 0]))
    np.testing.assert_allclose(measures.total_entropy, LOG_2)
    assert measures.pairwise_kl == 0


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(2, 7), st.integers(0, 2**32 - 1))
def test_uncertainty_is_consistent(members, n, classes, seed):
    measures = ensemble_uncertainty(random_members(members, n, classes, seed))
    total = measures.expected_entropy + measures.mutual_information
    np.testing.assert_allclose(measures.total_entropy, total, atol=1e-12)
    assert (measures.mutual_information >= 0).all()
    assert (measures.mutual_information <= np.log(members) + 1e-12).all()
    assert (measures.mutual_information <= measures.pairwise_kl + 1e-12).all()
    assert (measures.total_entropy <= np.log(classes) + 1e-12).all()
    assert ((measures.disagreement >= 0) & (measures.disagreement <= 1)).all()


def test_scores_of_systems_do_not_depend_on_the_batches():
    log_p, labels = random_members(), np.arange(30) % 5
    systems = make_systems("abcd")
    whole = score_systems(systems, log_p, labels)
    parts = [score_systems(systems, log_p[:, i : i + 7], labels[i : i + 7]) for i in (0, 7, 14, 21)]
    parts.append(score_systems(systems, log_p[:, 28:], labels[28:]))
    for i in range(5):
        joined = [np.concatenate(arrays) for arrays in zip(*(p[i] for p in parts), strict=True)]
        for array, expected in zip(joined, whole[i], strict=True):
            np.testing.assert_array_equal(array, expected)


def test_ensemble_is_the_mean_of_its_members_probabilities():
    log_p, labels = random_members(), np.arange(30) % 5
    ensemble, *members = score_systems(make_systems("abcd"), log_p, labels)
    p = np.exp(log_p).mean(0)[np.arange(30), labels]
    np.testing.assert_allclose(ensemble.label_log_probability, np.log(p))
    nll = [-member.label_log_probability.mean() for member in members]
    np.testing.assert_allclose(nll, -log_p[:, np.arange(30), labels].mean(-1))
    assert -ensemble.label_log_probability.mean() <= np.mean(nll)  # Jensen's inequality


@pytest.mark.parametrize("function", [ensemble_uncertainty, disagreement, pairwise_kl])
@pytest.mark.parametrize("shape", [(3, 4), (2, 0, 4), (0, 3, 4)])
def test_uncertainty_refuses_other_shapes(function, shape):
    with pytest.raises(ValueError, match=r"expected \(members, examples, classes\)"):
        function(np.zeros(shape))
