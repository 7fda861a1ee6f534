"""Temperature scaling and conformal sets: fitted to some examples, measured on others.

The data are either a held-out share of the training split, or, without one, halves of the test
split: each half is measured with what was fitted to the other one, so that every example counts
once (two-fold test-time cross-validation, Ashukha et al. 2020, arXiv:2002.06470, section 3).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from resflax.evaluate.run import Counted, Reduced
from resflax.evaluate.size_curve import SizeScores, score_sizes
from resflax.evaluate.systems import System, SystemScores, score_systems
from resflax.metrics import ExampleScores, fit_temperature

# Held-out examples that are used; with more, they are evenly spaced. Whole log-probabilities are
# kept of them, 4 bytes per member, example and class.
MAX_EXAMPLES = 10_000
# Limit for the log-probabilities of a whole test split.
MAX_KEPT_BYTES = 2 * 2**30


class Kept(NamedTuple):
    """Whole predictions of examples.

    Attributes:
      log_p: log-probabilities of each member.
      labels: the true classes.
    """

    log_p: Float32[np.ndarray, "n members classes"]
    labels: Int[np.ndarray, " n"]


def keep(rows: Counted) -> Reduced:
    """Keeps the predictions of a batch; a `Reduce`."""
    return Reduced(Kept(np.moveaxis(rows.log_p, 0, 1).astype(np.float32), rows.labels))


class Targets(NamedTuple):
    """What is calibrated.

    Attributes:
      systems: see `make_systems`.
      sizes: subsets of each size, see `make_subsets`; () for none.
    """

    systems: tuple[System, ...]
    sizes: tuple[tuple[System, ...], ...]


class Temperatures(NamedTuple):
    """Fitted temperatures of `Targets`."""

    systems: tuple[float, ...]
    sizes: tuple[tuple[float, ...], ...]


def fit_temperatures(targets: Targets, kept: Kept) -> Temperatures:
    """Fits a temperature to each system and to each subset of members.

    An ensemble has one temperature for the mean of the probabilities, as in Ashukha et al. 2020.
    """
    log_p = np.moveaxis(kept.log_p, 1, 0).astype(np.float64)
    fitted: dict[tuple[int, ...], float] = {}

    def fit(system: System) -> float:
        key = tuple(sorted(system.members))
        if key not in fitted:
            fitted[key] = fit_temperature(system.log_probabilities(log_p), kept.labels)
        return fitted[key]

    systems = tuple(fit(system) for system in targets.systems)
    return Temperatures(systems, tuple(tuple(map(fit, subsets)) for subsets in targets.sizes))


class Calibrated(NamedTuple):
    """Scores after temperature scaling.

    Attributes:
      systems: scores of the examples, for each system.
      sizes: scores of subsets of each size; () for none.
    """

    systems: tuple[ExampleScores, ...]
    sizes: SizeScores | tuple[()]


def score_calibrated(
    targets: Targets,
    temperatures: Temperatures,
    log_p: Float[np.ndarray, "members n classes"],
    labels: Int[np.ndarray, " n"],
    counts: Bool[np.ndarray, " n"],
) -> Reduced:
    """Scores a batch after temperature scaling: `Calibrated`, and sums for the Brier score."""
    scores: SystemScores = score_systems(
        targets.systems, log_p, labels, counts, temperatures.systems
    )
    sizes = score_sizes(targets.sizes, log_p, labels, temperatures.sizes) if targets.sizes else ()
    return Reduced(Calibrated(scores.examples, sizes), scores.brier)


def halves(examples: int) -> tuple[Int[np.ndarray, " first"], Int[np.ndarray, " second"]]:
    """Returns the indices of two random halves, in order."""
    order = np.random.default_rng(0).permutation(examples)
    return np.sort(order[: examples // 2]), np.sort(order[examples // 2 :])


def join_halves(indices: Sequence[Int[np.ndarray, " n"]], parts: Sequence[Any]) -> Any:
    """Puts the values of the examples of two halves in their original order.

    >>> join_halves([np.array([0, 2]), np.array([1])], [np.array([5, 7]), np.array([6])])
    array([5, 6, 7])
    """
    order = np.argsort(np.concatenate(indices))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[order], *parts)
