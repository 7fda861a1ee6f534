"""Temperature scaling, decomposition of the Brier score, and the risk-coverage curve."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resflax.metrics import (
    apply_temperature,
    brier_decomposition,
    brier_sums,
    classification_metrics,
    fit_temperature,
    log_softmax,
)
from resflax.metrics.risk_coverage import risk_coverage


def labeled_by_model(n=200_000, classes=6, seed=0):
    """Returns log-probabilities, and labels that are drawn with them."""
    rng = np.random.default_rng(seed)
    log_p = log_softmax(2 * rng.standard_normal((n, classes)))
    below = rng.random((n, 1)) < np.exp(log_p).cumsum(-1)
    return log_p, np.minimum(below.argmax(-1), classes - 1)


def nll(log_p, labels, temperature):
    scaled = apply_temperature(log_p, temperature)
    return -scaled[np.arange(len(labels)), labels].mean()


def test_temperature_of_calibrated_predictions_is_one():
    log_p, labels = labeled_by_model()
    assert abs(fit_temperature(log_p, labels) - 1) < 0.02


@pytest.mark.parametrize("factor", [0.2, 3.0])
def test_temperature_recovers_a_known_factor(factor):
    log_p, labels = labeled_by_model(n=5000)
    expected = factor * fit_temperature(log_p, labels)
    np.testing.assert_allclose(fit_temperature(factor * log_p, labels), expected, rtol=1e-6)


def test_temperature_is_that_of_scipy():
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(3)
    logits, labels = 5 * rng.standard_normal((300, 4)), rng.integers(0, 4, 300)
    labels[:150] = logits[:150].argmax(-1)
    found = optimize.minimize_scalar(
        lambda log_t: nll(logits, labels, np.exp(log_t)), bounds=(-4, 4), options={"xatol": 1e-9}
    )
    np.testing.assert_allclose(fit_temperature(logits, labels), np.exp(found.x), rtol=1e-5)


def test_temperature_without_finite_optimum_is_a_bound():
    eye = np.eye(3)
    assert fit_temperature(eye, np.array([0, 1, 2])) == 0.01  # all correct
    assert fit_temperature(eye, np.array([1, 2, 0])) == 100  # all wrong
    assert fit_temperature(np.zeros((3, 3)), np.array([1, 2, 0])) == 100  # constant


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(2, 6), st.floats(0.01, 50), st.integers(0, 2**32 - 1))
def test_temperature_is_a_minimum(n, classes, scale, seed):
    rng = np.random.default_rng(seed)
    logits, labels = scale * rng.standard_normal((n, classes)), rng.integers(0, classes, n)
    fitted = fit_temperature(logits, labels)
    for other in (1.0, fitted * 0.99, fitted * 1.01):
        if 0.01 <= other <= 100:
            best = nll(logits, labels, fitted)
            assert best <= nll(logits, labels, other) * (1 + 1e-9) + 1e-12


def test_temperature_lowers_nll_and_keeps_accuracy():
    log_p, labels = labeled_by_model(n=2000)
    overconfident = 4 * log_p
    scaled = apply_temperature(overconfident, fit_temperature(overconfident, labels))
    before, after = (classification_metrics(x, labels) for x in (overconfident, scaled))
    assert after.nll < before.nll
    assert after.ece < before.ece
    assert after.accuracy == before.accuracy


def test_temperature_refuses_invalid_input():
    logits = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"example 1 has the label 3: expected from 0 to 2"):
        fit_temperature(logits, np.array([0, 3]))
    with pytest.raises(ValueError, match="1 of 6 values are not finite"):
        fit_temperature(np.where(np.arange(6) == 4, np.nan, 0.0).reshape(2, 3), np.array([0, 1]))
    with pytest.raises(ValueError, match="expected a positive number"):
        apply_temperature(logits, 0.0)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 60), st.integers(2, 6), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_brier_score_is_the_sum_of_its_parts(n, classes, bins, seed):
    rng = np.random.default_rng(seed)
    logits, labels = 2 * rng.standard_normal((n, classes)), rng.integers(0, classes, n)
    parts = brier_decomposition(brier_sums(logits, labels, bins))
    brier = classification_metrics(logits, labels).brier
    np.testing.assert_allclose(parts.reliability - parts.resolution + parts.uncertainty, brier)
    np.testing.assert_allclose(parts.brier, brier)
    assert parts.reliability >= 0
    assert 0 <= parts.uncertainty <= 1


def test_brier_parts_of_equal_forecasts_follow_murphy():
    """Murphy 1973, for two classes: each part is twice that of one class."""
    forecasts = np.array([0.1] * 10 + [0.5] * 6 + [0.9] * 4)
    events = np.array([1, *[0] * 9, *[1] * 3, *[0] * 3, *[1] * 4])
    expected_reliability = expected_resolution = 0.0
    for forecast in (0.1, 0.5, 0.9):
        group = forecasts == forecast
        gap = forecast - events[group].mean()
        expected_reliability += group.mean() * gap**2
        expected_resolution += group.mean() * (events[group].mean() - events.mean()) ** 2
    logits = np.log(np.stack([1 - forecasts, forecasts], -1))
    parts = brier_decomposition(brier_sums(logits, events))
    base = events.mean()
    np.testing.assert_allclose(parts.reliability, 2 * expected_reliability, atol=1e-12)
    np.testing.assert_allclose(parts.resolution, 2 * expected_resolution)
    np.testing.assert_allclose(parts.uncertainty, 2 * base * (1 - base))


def test_brier_sums_add_up_over_batches():
    log_p, labels = labeled_by_model(n=100)
    whole = brier_decomposition(brier_sums(log_p, labels))
    added = brier_sums(log_p[:30], labels[:30]).add(brier_sums(log_p[30:], labels[30:]))
    np.testing.assert_allclose(brier_decomposition(added), whole)


def test_reliability_of_calibrated_predictions_is_small():
    log_p, labels = labeled_by_model()
    calibrated = brier_decomposition(brier_sums(log_p, labels))
    overconfident = brier_decomposition(brier_sums(3 * log_p, labels))
    assert calibrated.reliability < 1e-3 < 0.05 < overconfident.reliability


def test_risk_coverage_has_the_values_of_torch_uncertainty():
    """Its tests/metrics/classification/test_risk_coverage.py, which uses the trapezoidal rule."""
    curve = risk_coverage(np.array([0.9, 0.8, 0.7, 0.6, 0.8]), np.array([1, 1, 0, 0, 1]) == 1)
    expected = (0.25 * 0.2 / 2 + 0.25 * 0.2 + 0.15 * 0.2 / 2) / 0.8
    area = np.trapezoid(curve.risk, curve.coverage) / (1 - 1 / 5)
    np.testing.assert_allclose(area, expected)


def test_risk_coverage_follows_its_definition():
    rng = np.random.default_rng(0)
    confidence, correct = rng.permutation(50) / 50, rng.random(50) < 0.7
    curve = risk_coverage(confidence, correct)
    for count in (1, 10, 50):
        threshold = np.sort(confidence)[-count]
        expected = 1 - correct[confidence >= threshold].mean()
        np.testing.assert_allclose(curve.risk[count - 1], expected)
    np.testing.assert_allclose(curve.area, np.mean(curve.risk))


def test_equal_confidences_are_in_no_order():
    correct = np.arange(12) < 6
    curve = risk_coverage(np.full(12, 0.5), correct)
    np.testing.assert_allclose(curve.risk, 0.5)
    np.testing.assert_array_equal(curve.risk, risk_coverage(np.full(12, 0.5), correct[::-1]).risk)


def test_excess_area_is_zero_for_the_best_order():
    correct = np.arange(1000) < 800
    curve = risk_coverage(np.arange(1000)[::-1] / 1000, correct)
    assert abs(curve.excess_area) < 1e-12
    np.testing.assert_allclose(curve.area, 0.2 + 0.8 * np.log(0.8), atol=1e-3)
    assert risk_coverage(np.arange(1000) / 1000, correct).excess_area > 0.3


def test_risk_coverage_refuses_invalid_input():
    with pytest.raises(ValueError, match="empty"):
        risk_coverage(np.zeros(0), np.zeros(0, bool))
    with pytest.raises(ValueError, match="equal lengths"):
        risk_coverage(np.zeros(3), np.zeros(2, bool))
