"""Conformal sets: scores against their definitions, coverage against its guarantee."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resflax.metrics import (
    CONFORMAL_SCORES,
    conformal_scores,
    conformal_threshold,
    label_scores,
    log_softmax,
    prediction_sets,
    reduce_sets,
    summarize_sets,
)

METHODS = sorted(CONFORMAL_SCORES)


def noisy_case(n, classes, seed, noise=2.0):
    """Returns logits of a miscalibrated classifier, labels, and uniform numbers."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    logits = 4 * np.eye(classes)[labels] + noise * rng.standard_normal((n, classes))
    return logits, labels, rng.random(n)


def test_scores_follow_their_definitions():
    """With the loops written out: ranks from 1, classes in order of falling probability."""
    logits, _, uniform = noisy_case(20, 5, seed=0)
    p = np.exp(log_softmax(logits))
    for i in range(20):
        order = sorted(range(5), key=lambda c, i=i: -p[i, c])
        for rank, c in enumerate(order, start=1):
            above = sum(p[i, order[j]] for j in range(rank - 1))
            aps = above + uniform[i] * p[i, c]
            expected = {"lac": 1 - p[i, c], "aps": aps, "raps": aps + 0.1 * max(0, rank - 1)}
            for method, score in expected.items():
                ours = conformal_scores(method, logits, uniform)[i, c]
                np.testing.assert_allclose(ours, score, rtol=1e-9, atol=1e-12)


def test_threshold_is_the_corrected_quantile():
    scores = np.random.default_rng(0).permutation(99) / 99
    for alpha in (0.01, 0.05, 0.1, 0.2, 0.33):
        expected = np.sort(scores)[math.ceil(round(100 * (1 - alpha), 6)) - 1]
        assert conformal_threshold(scores, alpha) == expected


def test_threshold_of_few_examples_is_infinite():
    assert conformal_threshold(np.zeros(8), 0.1) == math.inf
    assert conformal_threshold(np.zeros(9), 0.1) == 0
    sets = prediction_sets("lac", np.eye(3), math.inf)
    assert sets.all()


@pytest.mark.parametrize("method", METHODS)
def test_coverage_of_exchangeable_data_is_as_promised(method):
    """The mean coverage over many splits is at least 1 - alpha, and at most 1/(n + 1) more."""
    alpha, held_out, coverages = 0.2, 50, []
    logits, labels, uniform = noisy_case(20_000, 6, seed=1)
    for start in range(0, 20_000, 200):
        held, test = slice(start, start + held_out), slice(start + held_out, start + 200)
        scores = label_scores(method, logits[held], labels[held], uniform[held])
        threshold = conformal_threshold(scores, alpha)
        sets = prediction_sets(method, logits[test], threshold, uniform[test])
        coverages.append(summarize_sets(reduce_sets(sets, labels[test])).coverage)
    error = 3 * np.std(coverages) / np.sqrt(len(coverages))
    assert 1 - alpha - error < np.mean(coverages) < 1 - alpha + 1 / (held_out + 1) + error


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(METHODS),
    st.integers(2, 8),
    st.floats(0.02, 0.5),
    st.floats(0.2, 5),
    st.integers(0, 2**32 - 1),
)
def test_coverage_is_within_binomial_error(method, classes, alpha, noise, seed):
    """Given 1000 held-out examples the coverage is about Beta(1000 (1 - alpha), 1000 alpha)."""
    logits, labels, uniform = noisy_case(3000, classes, seed, noise)
    held, test = slice(0, 1000), slice(1000, 3000)
    scores = label_scores(method, logits[held], labels[held], uniform[held])
    sets = prediction_sets(method, logits[test], conformal_threshold(scores, alpha), uniform[test])
    deviation = np.sqrt(alpha * (1 - alpha) * (1 / 1000 + 1 / 2000))
    assert summarize_sets(reduce_sets(sets, labels[test])).coverage > 1 - alpha - 5 * deviation


def test_randomized_sets_are_smaller():
    logits, labels, uniform = noisy_case(4000, 8, seed=2, noise=3.0)
    sizes = []
    for weights in (None, uniform):
        held = None if weights is None else weights[:2000]
        rest = None if weights is None else weights[2000:]
        threshold = conformal_threshold(
            label_scores("aps", logits[:2000], labels[:2000], held), 0.1
        )
        sets = prediction_sets("aps", logits[2000:], threshold, rest)
        sizes.append(summarize_sets(reduce_sets(sets, labels[2000:])).mean_size)
    assert sizes[1] < sizes[0]


def test_regularized_sets_have_a_smaller_maximum():
    """RAPS bounds the size of the largest sets (Angelopoulos et al. 2021, figure 1)."""
    logits, labels, uniform = noisy_case(4000, 20, seed=3, noise=3.0)
    largest = {}
    for method in ("aps", "raps"):
        scores = label_scores(method, logits[:2000], labels[:2000], uniform[:2000])
        threshold = conformal_threshold(scores, 0.1)
        sets = prediction_sets(method, logits[2000:], threshold, uniform[2000:])
        largest[method] = sets.sum(-1).max()
    assert largest["raps"] < largest["aps"]


def test_sets_can_be_empty():
    logits = np.log([[0.5, 0.3, 0.2], [0.9, 0.05, 0.05]])
    sets = prediction_sets("lac", logits, 0.3)
    assert sets.tolist() == [[False] * 3, [True, False, False]]
    assert summarize_sets(reduce_sets(sets, np.array([0, 0]))) == (0.5, 0.5, 0.5)


def test_sets_of_batches_are_those_of_the_whole():
    logits, _, uniform = noisy_case(40, 5, seed=4)
    whole = prediction_sets("raps", logits, 0.7, uniform)
    parts = [
        prediction_sets("raps", logits[i : i + 7], 0.7, uniform[i : i + 7]) for i in range(0, 40, 7)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_conformal_refuses_invalid_input():
    with pytest.raises(ValueError, match="'tps': expected lac, aps, raps"):
        conformal_scores("tps", np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"uniform has the shape \(3,\): expected \(2,\)"):
        conformal_scores("aps", np.zeros((2, 3)), np.zeros(3))
    with pytest.raises(ValueError, match="label 3: expected from 0 to 2"):
        label_scores("aps", np.zeros((2, 3)), np.array([0, 3]))
    for alpha in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match="between 0 and 1"):
            conformal_threshold(np.zeros(3), alpha)
    with pytest.raises(ValueError, match="scores is empty"):
        conformal_threshold(np.zeros(0), 0.1)
