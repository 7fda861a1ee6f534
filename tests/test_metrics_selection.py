"""Size curves, deep-ensemble equivalents, greedy selection and corruption errors."""

import math
from itertools import combinations

import numpy as np
import pytest

from resflax.metrics import (
    apply_temperature,
    classification_metrics,
    corruption_errors,
    deep_ensemble_equivalent,
    fit_temperature,
    greedy_selection,
    log_mean_probability,
    log_softmax,
    mean_corruption_error,
    member_subsets,
    relative_corruption_errors,
    size_curve,
    subset_sums,
)


def members_and_labels(members=4, n=200, classes=5, seed=0):
    """Returns log-probabilities of members that are right about half of the time, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    noise = 1.5 * rng.standard_normal((members, n, classes))
    return log_softmax(1.5 * np.eye(classes)[labels] + noise), labels


def label_log_p(log_p, labels):
    return log_p[:, np.arange(len(labels)), labels]


def ensemble_nll(log_p, labels, members):
    mean = log_mean_probability(log_p[list(members)])
    return classification_metrics(mean, labels).nll


def test_subsets_are_all_or_a_sample():
    assert len(member_subsets(5)) == 31
    many = member_subsets(12, max_subsets=10)
    assert [sum(len(s) == k for s in many) for k in (1, 2, 6, 11, 12)] == [10, 10, 10, 10, 1]
    assert len(set(many)) == len(many)
    assert many == member_subsets(12, max_subsets=10)
    assert all(len(set(s)) == len(s) and max(s) < 12 for s in many)


def test_size_curve_is_the_mean_over_subsets():
    log_p, labels = members_and_labels()
    subsets = member_subsets(4)
    temperatures = [fit_temperature(log_mean_probability(log_p[list(s)]), labels) for s in subsets]
    curve = size_curve(subsets, subset_sums(log_p, labels, subsets, temperatures))
    assert curve.size.tolist() == [1, 2, 3, 4]
    for k in range(1, 5):
        metrics, scaled = [], []
        for subset, t in zip(subsets, temperatures, strict=True):
            if len(subset) == k:
                mean = log_mean_probability(log_p[list(subset)])
                metrics.append(classification_metrics(mean, labels))
                scaled.append(classification_metrics(apply_temperature(mean, t), labels).nll)
        np.testing.assert_allclose(curve.accuracy[k - 1], np.mean([m.accuracy for m in metrics]))
        np.testing.assert_allclose(curve.nll[k - 1], np.mean([m.nll for m in metrics]))
        np.testing.assert_allclose(curve.scaled_nll[k - 1], np.mean(scaled))
    assert (np.diff(curve.nll) < 0).all()  # by Jensen's inequality


def test_subset_sums_add_up_over_batches():
    log_p, labels = members_and_labels()
    subsets = member_subsets(4)
    whole = subset_sums(log_p, labels, subsets)
    parts = subset_sums(log_p[:, :50], labels[:50], subsets)
    added = parts.add(subset_sums(log_p[:, 50:], labels[50:], subsets))
    np.testing.assert_array_equal(added.correct, whole.correct)
    np.testing.assert_allclose(added.nll, whole.nll)
    assert added.examples == whole.examples == 200
    assert np.isnan(added.scaled_nll).all()


def test_subset_sums_are_exact_for_impossible_labels():
    """The label has probability exp(-2000) in one member and 1 in the other."""
    logits = np.array([[[0.0, 2000.0]], [[2000.0, 0.0]]])
    sums = subset_sums(logits, np.array([0]), [(0,), (1,), (0, 1)], [1.0, 1.0, 2.0])
    np.testing.assert_allclose(sums.nll, [2000, 0, np.log(2)])
    np.testing.assert_allclose(sums.scaled_nll, [2000, 0, np.log(2)])


def test_equivalent_of_a_deep_ensemble_is_its_size():
    nll = np.array([0.5, 0.4, 0.35, 0.33])
    for size in range(1, 5):
        assert deep_ensemble_equivalent(nll[size - 1], nll) == size


def test_equivalent_of_a_size_is_exact_in_spite_of_rounding():
    """The same likelihood, summed in another order, is within 1e-12."""
    nll = np.array([0.5, 0.4, 0.35, 0.33])
    for size in range(1, 5):
        for error in (-1e-12, 1e-12):
            assert deep_ensemble_equivalent(nll[size - 1] * (1 + error), nll) == size


def test_equivalent_is_interpolated_and_bounded():
    nll = np.array([0.5, 0.4, 0.35, 0.36])
    np.testing.assert_allclose(deep_ensemble_equivalent(0.43, nll), 1.7)
    np.testing.assert_allclose(deep_ensemble_equivalent(0.355, nll), 2.9)
    assert deep_ensemble_equivalent(0.6, nll) == 1
    assert deep_ensemble_equivalent(0.3, nll) == math.inf
    assert deep_ensemble_equivalent(0.4, np.array([0.4, 0.4])) == 1
    for bad in (np.zeros(0), np.array([np.nan])):
        with pytest.raises(ValueError, match="reference"):
            deep_ensemble_equivalent(0.3, bad)


def test_greedy_selection_adds_the_best_member_each_time():
    log_p, labels = members_and_labels(members=6)
    chosen = greedy_selection(label_log_p(log_p, labels), 4)
    so_far = []
    for member, nll in zip(chosen.members, chosen.nll, strict=True):
        losses = {m: ensemble_nll(log_p, labels, [*so_far, m]) for m in range(6) if m not in so_far}
        assert member == min(losses, key=losses.get)
        np.testing.assert_allclose(nll, losses[member])
        so_far.append(member)


def test_greedy_selection_of_two_is_near_the_best_pair():
    log_p, labels = members_and_labels(members=6, seed=3)
    best = min(ensemble_nll(log_p, labels, pair) for pair in combinations(range(6), 2))
    worst = max(ensemble_nll(log_p, labels, pair) for pair in combinations(range(6), 2))
    chosen = greedy_selection(label_log_p(log_p, labels), 2).nll[-1]
    assert best - 1e-12 <= chosen < (best + worst) / 2


def test_impossible_label_of_one_member_is_no_error():
    with np.errstate(divide="ignore"):
        p = np.log(np.array([[0.0, 0.9], [0.5, 0.5]]))
    assert greedy_selection(p, 2).members == (1, 0)


def test_selection_refuses_invalid_input():
    p = np.zeros((3, 4))
    for size in (0, 4):
        with pytest.raises(ValueError, match="expected from 1 to the 3 members"):
            greedy_selection(p, size)
    for bad in (np.zeros(3), np.zeros((0, 3)), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match=r"expected \(members, examples\)"):
            greedy_selection(bad, 1)
    with pytest.raises(ValueError, match="2 temperatures for 1 subsets"):
        subset_sums(np.zeros((2, 3, 4)), np.zeros(3, int), [(0,)], [1.0, 1.0])
    with pytest.raises(ValueError, match="at least 1"):
        member_subsets(0)


def test_corruption_error_has_published_values():
    """Top-1 accuracy of ResNet-50 on ImageNet-C, the CE in percent, and AlexNet's mean errors.

    The means over the severities stand for the five of them, since only their sums count.
    """
    alexnet = {"brightness": 0.564592, "gaussian_noise": 0.886428}
    errors = {"brightness": 1 - 0.6802, "gaussian_noise": 1 - 0.2929}
    ours = corruption_errors(*({k: np.full(5, v) for k, v in t.items()} for t in (errors, alexnet)))
    np.testing.assert_allclose(100 * ours["brightness"], 56.64, atol=0.01)
    np.testing.assert_allclose(100 * ours["gaussian_noise"], 79.77, atol=0.01)


def test_corruption_error_normalizes_each_corruption():
    errors = {"fog": np.array([0.1, 0.3]), "blur": np.array([0.4, 0.4])}
    reference = {"fog": np.array([0.2, 0.2]), "blur": np.array([0.8, 0.8]), "jpeg": np.ones(2)}
    assert corruption_errors(errors, reference) == {"fog": 1.0, "blur": 0.5}
    np.testing.assert_allclose(mean_corruption_error(errors, reference), 0.75)
    np.testing.assert_allclose(mean_corruption_error(errors), 0.3)
    np.testing.assert_allclose(mean_corruption_error(errors, errors), 1)
    relative = relative_corruption_errors(errors, 0.1, reference, 0.1)
    np.testing.assert_allclose([relative["fog"], relative["blur"]], [0.2 / 0.2, 0.6 / 1.4])


def test_corruption_error_refuses_invalid_input():
    fog = {"fog": np.array([0.1, 0.3])}
    for errors, reference, message in [
        ({}, None, "errors is empty"),
        (fog, {"blur": np.ones(2)}, "no 'fog': it has blur"),
        (fog, {"fog": np.ones(3)}, "3 severities"),
        (fog, {"fog": np.zeros(2)}, "positive sum"),
        ({"fog": np.array([np.nan])}, None, "fog: 1 of 1 values are not finite"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            corruption_errors(errors, reference)
        assert "\n" not in str(error.value)
