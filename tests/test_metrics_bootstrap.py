"""Bootstrap intervals against closed forms, coverage and a loop over samples."""

import numpy as np
import pytest

import resflax.metrics.bootstrap as module
from resflax.metrics import (
    auroc,
    bootstrap_interval,
    calibration_error,
    classification_metrics,
    means,
    score_examples,
)


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
    for sample in range(5):
        rows = np.repeat(np.arange(60), counts[sample])
        expected = classification_metrics(logits[rows], labels[rows])
        np.testing.assert_allclose(ours_means[sample], [expected.accuracy, expected.nll])
        np.testing.assert_allclose(ours_ece[sample], expected.ece)


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
