"""Temperature scaling and conformal sets: fitted to some examples, measured on others.

The examples to fit to are either a held-out share of the training split, or, without one, halves
of the test split: each half is measured with what was fitted to the other one, so that every
example counts once. The metrics are averaged over several such splits at random (test-time
cross-validation, Ashukha et al. 2020, arXiv:2002.06470, section 3).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Float32, Int

from resflax.evaluate.log_probabilities import Rows, select_rows
from resflax.metrics import (
    CONFORMAL_SCORES,
    BrierSums,
    ExampleScores,
    Sets,
    SubsetSums,
    conformal_threshold,
    fit_temperature,
    label_scores,
    prediction_sets,
    reduce_sets,
    subset_sums,
)
from resflax.metrics.systems import SELECTED, System, score_systems, sum_brier

# Held-out examples that are used; of more, as many that are evenly spaced.
MAX_EXAMPLES = 10_000
# Limit for the predictions that are kept of a whole test split.
MAX_KEPT_BYTES = 2 * 2**30
# Random splits into halves, and the limit for the predictions of all of them: fewer splits of large
# datasets, for time and memory.
SPLITS = 5
MAX_SPLIT_BYTES = 2**30


class Predictions(NamedTuple):
    """Whole predictions of examples, 4 bytes per member, example and class.

    Attributes:
      log_p: log-probabilities of each member.
      labels: the true classes.
      indices: indices of the examples in the split.
    """

    log_p: Float32[np.ndarray, "n members classes"]
    labels: Int[np.ndarray, " n"]
    indices: Int[np.ndarray, " n"]

    def rows(self) -> Rows:
        """Returns the examples as the rows of one batch, without `Rows.log_sum_exp`."""
        log_p = np.moveaxis(self.log_p, 1, 0).astype(np.float64)
        ones = np.ones(len(self.labels), np.float32)
        return Rows(self.indices, self.labels, ones, log_p, np.zeros(log_p.shape[:2]))


def keep(rows: Rows) -> Predictions:
    """Keeps the predictions of a batch."""
    log_p = np.moveaxis(rows.log_p, 0, 1).astype(np.float32)
    return Predictions(log_p, rows.labels, rows.indices.astype(np.int64))


class Targets(NamedTuple):
    """Systems and subsets of members to calibrate.

    Attributes:
      systems: see `make_systems`.
      subsets: subsets of the members, for the metrics against ensemble size; () for none.
      alpha: share of the examples whose label conformal sets may miss; 0 for no sets.
    """

    systems: tuple[System, ...]
    subsets: tuple[tuple[int, ...], ...]
    alpha: float


class Fitted(NamedTuple):
    """Temperatures and conformal thresholds fitted for `Targets`.

    Attributes:
      temperatures: of each system. That of an ensemble divides the logarithm of its mean
        probabilities.
      subsets: temperature of each subset.
      thresholds: of the conformal scores of each system, by method; of its probabilities before
        temperature scaling, since otherwise the examples would be used twice. {} for `SELECTED`:
        the examples have chosen its members, so that its sets would miss more labels than `alpha`.
    """

    temperatures: tuple[float, ...]
    subsets: tuple[float, ...]
    thresholds: tuple[dict[str, float], ...]


def fit(targets: Targets, rows: Rows) -> Fitted:
    """Fits temperatures and conformal thresholds to examples."""
    fitted: dict[tuple[int, ...], float] = {}

    def temperature(members: tuple[int, ...]) -> float:
        key = tuple(sorted(members))
        if key not in fitted:
            log_p = System("", key).log_probabilities(rows.log_p)
            fitted[key] = fit_temperature(log_p, rows.labels)
        return fitted[key]

    return Fitted(
        tuple(temperature(system.members) for system in targets.systems),
        tuple(temperature(subset) for subset in targets.subsets),
        tuple(_thresholds(system, rows, targets.alpha) for system in targets.systems),
    )


def _thresholds(system: System, rows: Rows, alpha: float) -> dict[str, float]:
    if not alpha or system.name == SELECTED:
        return {}
    log_p, uniform = system.log_probabilities(rows.log_p), _uniform(rows, seed=0)
    return {
        method: conformal_threshold(label_scores(method, log_p, rows.labels, uniform), alpha)
        for method in CONFORMAL_SCORES
    }


def _uniform(rows: Rows, seed: int) -> Float[np.ndarray, " n"]:
    """Returns a random number for each example, whatever the batch that it is in."""
    return np.random.default_rng(seed).random(int(rows.indices.max()) + 1)[rows.indices]


class Calibrated(NamedTuple):
    """Examples after calibration, for each system.

    Attributes:
      scores: after temperature scaling.
      sets: conformal sets by method; {} without thresholds.
    """

    scores: tuple[ExampleScores, ...]
    sets: tuple[dict[str, Sets], ...]


class CalibratedSums(NamedTuple):
    """Sums over examples: of each system after temperature scaling, and of each subset."""

    brier: tuple[BrierSums, ...]
    subsets: SubsetSums | tuple[()]


class CalibratedSplit(NamedTuple):
    """All examples after calibration.

    Attributes:
      fitted: what was fitted to held-out data, or to each half of the examples.
      scores: the examples.
      sums: sums over them.
    """

    fitted: tuple[Fitted, ...]
    scores: Calibrated
    sums: CalibratedSums


def calibrate(targets: Targets, fitted: Fitted, rows: Rows) -> Calibrated:
    """Reduces examples after calibration."""
    scores = score_systems(targets.systems, rows.log_p, rows.labels, fitted.temperatures)
    pairs = zip(targets.systems, fitted.thresholds, strict=True)
    return Calibrated(scores, tuple(_sets(system, rows, values) for system, values in pairs))


def _sets(system: System, rows: Rows, thresholds: dict[str, float]) -> dict[str, Sets]:
    if not thresholds:
        return {}
    log_p, uniform = system.log_probabilities(rows.log_p), _uniform(rows, seed=1)
    sets = {}
    for method, threshold in thresholds.items():
        found = prediction_sets(method, log_p, threshold, uniform)
        sets[method] = reduce_sets(found, rows.labels)
    return sets


def sum_calibrated(targets: Targets, fitted: Fitted, rows: Rows) -> CalibratedSums:
    """Sums what the Brier decomposition and the metrics against ensemble size need."""
    brier = sum_brier(targets.systems, rows.log_p, rows.labels, fitted.temperatures)
    if not targets.subsets:
        return CalibratedSums(brier, ())
    return CalibratedSums(
        brier, subset_sums(rows.log_p, rows.labels, targets.subsets, fitted.subsets)
    )


def number_of_splits(predictions: Predictions) -> int:
    """Returns how often to split examples at random: `SPLITS`, or less often for large data."""
    return max(1, min(SPLITS, MAX_SPLIT_BYTES // max(1, predictions.log_p.nbytes)))


def cross_validate(targets: Targets, predictions: Predictions, seed: int) -> CalibratedSplit:
    """Calibrates each of two random halves of the examples by the other one.

    Args:
      targets: what to calibrate.
      predictions: the examples, in the order of the result.
      seed: seed of the split.
    """
    rows = predictions.rows()
    order = np.random.default_rng(seed).permutation(len(predictions.labels))
    indices = np.array_split(order, 2)
    first, second = (select_rows(rows, index) for index in indices)
    fitted = (fit(targets, second), fit(targets, first))
    halves = list(zip(fitted, (first, second), strict=True))
    parts = [calibrate(targets, own, half) for own, half in halves]
    sums = [sum_calibrated(targets, own, half) for own, half in halves]
    calibrated: Calibrated = _join(indices, parts)
    return CalibratedSplit(fitted, calibrated, jax.tree.map(np.add, *sums))


def _join(indices: Sequence[Int[np.ndarray, " n"]], parts: Sequence[Any]) -> Any:
    """Puts the values of the examples of two parts in their original order."""
    order = np.argsort(np.concatenate(indices))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[order], *parts)
