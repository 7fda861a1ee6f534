"""Metrics of a classifier against scikit-learn, closed forms and properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resflax.metrics import (
    Bins,
    classification_metrics,
    equal_mass_bins,
    equal_width_bins,
    log_mean_probability,
    log_softmax,
    score_examples,
)


def random_case(n=200, classes=7, seed=0):
    """Returns logits, labels that agree with them about half of the time, and probabilities."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((n, classes))
    labels = np.where(rng.random(n) < 0.5, logits.argmax(-1), rng.integers(0, classes, n))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return logits, labels, p


def test_metrics_equal_those_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    logits, labels, p = random_case()
    ours, classes = classification_metrics(logits, labels), range(7)
    assert ours.accuracy == sklearn.accuracy_score(labels, p.argmax(-1))
    np.testing.assert_array_equal(ours.confusion, sklearn.confusion_matrix(labels, p.argmax(-1)))
    recall = sklearn.recall_score(labels, p.argmax(-1), average=None)
    np.testing.assert_allclose(ours.per_class, recall, rtol=1e-12)
    top5 = sklearn.top_k_accuracy_score(labels, p, k=5, labels=classes)
    np.testing.assert_allclose(ours.top5, top5, rtol=1e-12)
    nll = sklearn.log_loss(labels, p, labels=classes)
    np.testing.assert_allclose(ours.nll, nll, rtol=1e-10)


def test_brier_score_equals_that_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    logits, labels, p = random_case(classes=2)
    expected = 2 * sklearn.brier_score_loss(labels, p[:, 1])  # of one class of two
    np.testing.assert_allclose(classification_metrics(logits, labels).brier, expected, rtol=1e-12)


def test_brier_score_is_the_squared_distance_to_the_label():
    logits, labels, p = random_case()
    expected = np.square(p - np.eye(7)[labels]).sum(-1).mean()
    np.testing.assert_allclose(classification_metrics(logits, labels).brier, expected, rtol=1e-12)


def test_calibration_error_follows_its_definition():
    """Guo et al. 2017, equation 3, with the loops written out."""
    logits, labels, p = random_case(n=500)
    confidence, correct = p.max(-1), p.argmax(-1) == labels
    expected = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            gap = abs(correct[inside].mean() - confidence[inside].mean())
            expected += inside.mean() * gap
    np.testing.assert_allclose(classification_metrics(logits, labels).ece, expected, rtol=1e-10)


def test_adaptive_calibration_error_follows_its_definition():
    logits, labels, p = random_case(n=502)
    confidence, correct = p.max(-1), p.argmax(-1) == labels
    expected = sum(
        len(part) / 502 * abs(correct[part].mean() - confidence[part].mean())
        for part in np.array_split(np.argsort(confidence), 15)
    )
    ours = classification_metrics(logits, labels).adaptive_ece
    np.testing.assert_allclose(ours, expected, rtol=1e-10)


def test_bins_hold_their_upper_edges():
    confidence = np.array([1 / 15, 2 / 15 + 1e-9, 1.0, 0.5])
    log_p = np.log(np.stack([confidence, *[(1 - confidence) / 20 + 1e-300] * 20], -1))
    scores = score_examples(log_p, np.zeros(4, int))._replace(
        top_probability=confidence[:, None], top=np.zeros((4, 1), int)
    )
    assert np.flatnonzero(equal_width_bins(scores).examples).tolist() == [0, 2, 7, 14]


def test_perfect_classifier_has_no_error():
    labels = np.arange(30) % 3
    metrics = classification_metrics(1000 * np.eye(3)[labels], labels)
    assert metrics.accuracy == metrics.top5 == 1
    assert metrics.nll == metrics.brier == metrics.ece == metrics.adaptive_ece == 0


def test_uniform_classifier_has_closed_forms():
    """Over k classes: NLL log k, Brier 1 - 1/k, ECE |share of class 0 - 1/k|."""
    labels = np.arange(40) % 8
    metrics = classification_metrics(np.zeros((40, 8)), labels)
    np.testing.assert_allclose(metrics.nll, np.log(8))
    np.testing.assert_allclose(metrics.brier, 1 - 1 / 8)
    np.testing.assert_allclose([metrics.accuracy, metrics.top5], [1 / 8, 5 / 8])
    np.testing.assert_allclose(metrics.ece, 0, atol=1e-12)


def test_always_wrong_classifier_is_fully_miscalibrated():
    metrics = classification_metrics(1000 * np.eye(2)[np.zeros(9, int)], np.ones(9, int))
    assert (metrics.accuracy, metrics.ece, metrics.adaptive_ece, metrics.brier) == (0, 1, 1, 2)
    np.testing.assert_allclose(metrics.nll, 1000)


def test_class_without_examples_has_no_accuracy():
    metrics = classification_metrics(np.eye(3)[:2], np.array([0, 1]))
    assert np.isnan(metrics.per_class).tolist() == [False, False, True]


def test_fewer_than_five_classes_are_all_in_the_top_five():
    logits, labels, _ = random_case(classes=4)
    assert classification_metrics(logits, labels).top5 == 1


def test_log_softmax_is_finite_for_large_logits():
    np.testing.assert_array_equal(log_softmax(np.array([[1e5, 0.0]])), [[0, -1e5]])


def test_mean_of_views_is_the_mean_of_probabilities():
    views = log_softmax(np.random.default_rng(0).standard_normal((10, 4, 6)))
    np.testing.assert_allclose(np.exp(log_mean_probability(views)), np.exp(views).mean(0))


cases = st.tuples(st.integers(1, 60), st.integers(2, 9), st.integers(0, 2**32 - 1))


@settings(deadline=None, max_examples=60)
@given(cases)
def test_metrics_are_in_their_ranges(case):
    logits, labels, _ = random_case(*case)
    metrics = classification_metrics(logits, labels)
    assert 0 <= metrics.accuracy <= metrics.top5 <= 1
    assert metrics.nll >= 0
    assert -1e-12 <= metrics.brier <= 2 + 1e-12
    assert 0 <= metrics.ece <= 1
    assert metrics.confusion.sum() == metrics.examples == case[0]
    assert metrics.confusion.trace() == metrics.correct


@settings(deadline=None, max_examples=60)
@given(cases)
def test_metrics_do_not_depend_on_the_order(case):
    logits, labels, _ = random_case(*case)
    order = np.random.default_rng(case[2]).permutation(case[0])
    one, other = (classification_metrics(logits[i], labels[i]) for i in (slice(None), order))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(cases)
def test_bins_partition_the_examples(case):
    logits, labels, _ = random_case(*case)
    scores = score_examples(logits, labels)
    mass: Bins = equal_mass_bins(scores)
    assert equal_width_bins(scores).examples.sum() == mass.examples.sum() == case[0]
    assert np.ptp(mass.examples) <= 1
    np.testing.assert_allclose((mass.examples * mass.accuracy).sum(), scores.is_correct.sum())


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), r"shape \(0, 3\): expected \(examples, classes\)"),
        (np.zeros(3), np.zeros(3, int), r"shape \(3,\): expected"),
        (np.zeros((2, 3)), np.zeros(3, int), r"labels have the shape \(3,\)"),
        (np.zeros((2, 3)), np.zeros(2), "dtype float64"),
        (np.zeros((2, 3)), np.array([0, -1]), "example 1 has the label -1: expected from 0 to 2"),
        (np.zeros((2, 3)), np.array([3, 0]), "example 0 has the label 3: expected from 0 to 2"),
    ],
)
def test_metrics_refuse_invalid_input(logits, labels, message):
    with pytest.raises(ValueError, match=message) as error:
        classification_metrics(logits, labels)
    assert "\n" not in str(error.value)


def test_most_probable_classes_are_those_of_a_stable_sort():
    """Of equally probable classes the first, also where the probability is 0."""
    rng = np.random.default_rng(0)
    logits = rng.integers(-2, 3, (100, 9)).astype(float)
    logits[:, 3:8][rng.random((100, 5)) < 0.6] = -np.inf
    expected = np.argsort(-log_softmax(logits), axis=-1, kind="stable")[:, :5]
    np.testing.assert_array_equal(score_examples(logits, np.zeros(100, int)).top, expected)
