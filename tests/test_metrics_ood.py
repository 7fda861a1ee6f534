"""Detection of out-of-distribution examples against scikit-learn, closed forms and definitions."""

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resflax.metrics import aupr, auroc, detection, fpr95, log_softmax, ood_scores


def rounded_scores(inside, outside, seed, digits):
    """Returns two sets of scores, many of them equal if there are few digits."""
    rng = np.random.default_rng(seed)
    draw = [rng.standard_normal(inside), 1 + rng.standard_normal(outside)]
    return [np.round(scores, digits) for scores in draw]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 2**32 - 1), st.integers(0, 6))
def test_detection_equals_that_of_scikit_learn(inside, outside, seed, digits):
    sklearn = pytest.importorskip("sklearn.metrics")
    in_scores, out_scores = rounded_scores(inside, outside, seed, digits)
    is_out = np.repeat([0, 1], [inside, outside])
    scores = np.concatenate([in_scores, out_scores])
    ours = detection(in_scores, out_scores)
    np.testing.assert_allclose(ours.auroc, sklearn.roc_auc_score(is_out, scores))
    np.testing.assert_allclose(ours.aupr, sklearn.average_precision_score(is_out, scores))
    fpr, tpr, _ = sklearn.roc_curve(is_out, scores, drop_intermediate=False)
    np.testing.assert_allclose(ours.fpr95, fpr[np.argmax(tpr >= 0.95)])


@pytest.mark.parametrize("distance", [0.0, 0.5, 2.0])
def test_auroc_of_gaussians_has_its_closed_form(distance):
    """Scores N(0, 1) and N(d, 1): AUROC Phi(d / sqrt 2), FPR95 Phi(Phi^-1(0.95) - d)."""
    rng, normal = np.random.default_rng(0), NormalDist()
    in_scores, out_scores = rng.standard_normal(40_000), distance + rng.standard_normal(40_000)
    ours = detection(in_scores, out_scores)
    assert abs(ours.auroc - normal.cdf(distance / 2**0.5)) < 0.01
    assert abs(ours.fpr95 - normal.cdf(normal.inv_cdf(0.95) - distance)) < 0.01


def test_fpr95_has_the_values_of_torch_uncertainty():
    """Its tests/metrics/classification/test_fpr95.py."""
    assert fpr95(np.array([0.99]), np.ones(99)) == 0
    assert fpr95(np.repeat([0.95, 0.85], 50), np.full(100, 0.9)) == 0.5
    assert fpr95(np.array([1.0]), np.full(99, 0.99)) == 1


def test_detection_of_separated_scores_is_perfect():
    assert detection(np.arange(5), 5 + np.arange(3)) == (1, 1, 0)
    assert auroc(5 + np.arange(3), np.arange(5)) == 0
    assert auroc(np.zeros(4), np.zeros(9)) == 0.5
    np.testing.assert_allclose(aupr(np.zeros(4), np.zeros(12)), 0.75)


def test_scores_have_their_definitions():
    logits = 3 * np.random.default_rng(0).standard_normal((4, 10, 6))
    p = np.exp(log_softmax(logits))
    mean, scores = p.mean(0), ood_scores(logits)
    np.testing.assert_allclose(scores["max_probability"], -mean.max(-1))
    np.testing.assert_allclose(scores["energy"], -np.log(np.exp(logits).sum(-1)).mean(0))
    total, expected = -(mean * np.log(mean)).sum(-1), -(p * np.log(p)).sum(-1).mean(0)
    np.testing.assert_allclose(scores["entropy"], total)
    np.testing.assert_allclose(scores["mutual_information"], total - expected, atol=1e-12)


def test_scores_of_large_logits_are_finite():
    scores = ood_scores(np.array([[[1000.0, 0.0], [0.0, 2000.0]]], np.float32))
    np.testing.assert_array_equal(scores["energy"], [-1000, -2000])
    assert all(np.isfinite(values).all() for values in scores.values())


def test_scores_are_larger_for_uniform_predictions():
    logits = np.stack([np.zeros((5, 4)), 9 * np.eye(4)[[0, 1, 2, 3, 0]]], 1).reshape(1, 10, 4)
    for name, values in ood_scores(logits).items():
        if name != "mutual_information":
            assert auroc(values[1::2], values[::2]) == 1, name


@pytest.mark.parametrize("bad", [np.zeros(0), np.array([np.nan]), np.array([np.inf])])
def test_detection_refuses_invalid_input(bad):
    with pytest.raises(ValueError, match="out_scores"):
        detection(np.zeros(3), bad)
    with pytest.raises(ValueError, match="in_scores"):
        detection(bad, np.zeros(3))
