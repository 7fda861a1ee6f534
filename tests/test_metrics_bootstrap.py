"""Bootstrap intervals against closed forms, coverage and a loop over samples."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

import resflax.metrics.bootstrap as module
from resflax.metrics import (
    ExampleScores,
    aurc,
    auroc,
    bootstrap_interval,
    calibration_error,
    classification_metrics,
    detection_statistic,
    fpr95,
    mean_statistic,
    means,
    score_examples,
)
from resflax.metrics.risk_coverage import risk_coverage


def test_interval_of_a_mean_is_about_that_of_the_normal():
    values = np.random.default_rng(0).standard_normal(2000)
    low, high = bootstrap_interval(means(values), 2000, samples=4000)
    error = 1.96 * values.std() / np.sqrt(2000)
    np.testing.assert_allclose(
        [low, high], [values.mean() - error, values.mean() + error], atol=5e-3
    )


def test_interval_contains_the_true_mean_as_often_as_promised():
    rng, hits = np.random.default_rng(1), 0
    for seed in range(300):
        values = (rng.random(100) < 0.8).astype(float)
        low, high = bootstrap_interval(means(values), 100, samples=200, level=0.9, seed=seed)
        hits += low <= 0.8 <= high
    assert 0.83 < hits / 300 < 0.96


def test_statistics_equal_those_of_resampled_examples():
    """Each weighted statistic is that of the examples repeated as often as they are drawn."""
    rng = np.random.default_rng(2)
    logits, labels = 2 * rng.standard_normal((60, 4)), rng.integers(0, 4, 60)
    scores = score_examples(logits, labels)
    counts = rng.multinomial(60, np.full(60, 1 / 60), size=5)
    values = np.stack([scores.is_correct, -scores.label_log_probability], -1)
    ours_means, ours_ece = means(values)(counts), calibration_error(scores)(counts)
    ours_area = mean_statistic([aurc(scores)])(counts)
    for sample in range(5):
        rows = np.repeat(np.arange(60), counts[sample])
        expected = classification_metrics(logits[rows], labels[rows])
        np.testing.assert_allclose(ours_means[sample], [expected.accuracy, expected.nll])
        np.testing.assert_allclose(ours_ece[sample], expected.ece)
        curve = risk_coverage(scores.confidence[rows], scores.is_correct[rows])
        np.testing.assert_allclose(ours_area[sample], curve.area)


@pytest.mark.parametrize("digits", [1, 9])
def test_statistic_of_detection_is_that_of_resampled_examples(digits):
    """Also with equal scores."""
    rng = np.random.default_rng(6)
    inside, outside = (np.round(rng.standard_normal(n) + m, digits) for n, m in ((50, 0), (40, 1)))
    counts = [rng.multinomial(n, np.full(n, 1 / n), size=5) for n in (50, 40)]
    ours = detection_statistic(inside, outside)(*counts)
    for sample in range(5):
        drawn = [np.repeat(x, c[sample]) for x, c in zip((inside, outside), counts, strict=True)]
        is_out = np.repeat([0, 1], [50, 40])
        scores = np.concatenate(drawn)
        expected = (
            roc_auc_score(is_out, scores),
            average_precision_score(is_out, scores),
            fpr95(*drawn),
        )
        np.testing.assert_allclose(ours[sample], expected)


def test_interval_of_auroc_is_about_that_of_hanley_and_mcneil():
    """The standard error of Hanley and McNeil 1982, equation 2, for exponential scores."""
    rng, n = np.random.default_rng(7), 2000
    inside, outside = rng.exponential(1, n), rng.exponential(3, n)  # AUROC 3 / 4
    a = 0.75
    variance = (
        a * (1 - a) + (n - 1) * (a / (2 - a) - a**2) + (n - 1) * (2 * a**2 / (1 + a) - a**2)
    ) / n**2
    low, high = bootstrap_interval(detection_statistic(inside, outside), (n, n))
    np.testing.assert_allclose(high[0] - low[0], 2 * 1.96 * np.sqrt(variance), rtol=0.1)
    assert low[0] < 0.75 < high[0]


def test_interval_of_aurc_contains_its_expectation():
    """Correct with the probability of the confidence c, uniform from 0 to 1.

    The risk at coverage t is `t / 2`, the mean of 1 - c over the t most confident, so that the area
    is 1 / 4.
    """
    rng, hits = np.random.default_rng(8), 0
    for seed in range(60):
        confidence = rng.random(300)
        correct = rng.random(300) < confidence
        zeros = np.zeros(300)
        label, top = np.where(correct, 0, 1), np.zeros((300, 1), np.int64)
        scores = ExampleScores(label, top, confidence[:, None], zeros, zeros)
        low, high = bootstrap_interval(aurc(scores), 300, samples=200, level=0.9, seed=seed)
        hits += low <= 0.25 <= high
    assert 0.75 < hits / 60 <= 1


def test_interval_does_not_depend_on_the_chunks(monkeypatch):
    values = np.random.default_rng(3).random((50, 2))
    whole = bootstrap_interval(means(values), 50, samples=101)
    monkeypatch.setattr(module, "MAX_INDICES", 333)
    chunks = bootstrap_interval(means(values), 50, samples=101)
    np.testing.assert_allclose(chunks, whole, rtol=1e-12)


def test_interval_depends_on_the_seed_only():
    values = np.random.default_rng(4).random(50)
    one, same = (bootstrap_interval(means(values), 50, seed=5) for _ in range(2))
    other = bootstrap_interval(means(values), 50, seed=6)
    assert one == same != other


def test_interval_of_two_sets_draws_both():
    rng = np.random.default_rng(5)
    inside, outside = rng.standard_normal(80), 1 + rng.standard_normal(60)

    def statistic(in_counts, out_counts):
        return [
            auroc(np.repeat(inside, a), np.repeat(outside, b))
            for a, b in zip(in_counts, out_counts, strict=True)
        ]

    low, high = bootstrap_interval(statistic, (80, 60), samples=200)
    assert low < auroc(inside, outside) < high
    assert 0.05 < high - low < 0.3


def test_constant_has_an_interval_of_no_width():
    assert bootstrap_interval(means(np.ones(7)), 7, samples=20) == (1, 1)


@pytest.mark.parametrize(
    "arguments",
    [
        {"sizes": 0},
        {"sizes": ()},
        {"sizes": 3, "samples": 0},
        {"sizes": 3, "level": 1.0},
        {"sizes": 3, "level": 0.0},
    ],
)
def test_interval_refuses_invalid_input(arguments):
    with pytest.raises(ValueError, match="expected") as error:
        bootstrap_interval(means(np.ones(3)), **arguments)
    assert "\n" not in str(error.value)
