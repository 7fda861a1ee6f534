"""Assesses a network or an ensemble: its members, calibration, uncertainty and conformal sets.

Whole predictions are kept of the examples that calibration is fitted to; each other batch is
reduced at once, so that memory does not grow with the number of classes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from resflax.errors import UserError
from resflax.evaluate import calibrated as cal
from resflax.evaluate import ood
from resflax.evaluate.log_probabilities import Rows
from resflax.evaluate.run import Evaluated, Reduction
from resflax.metrics import (
    BrierSums,
    ExampleScores,
    SubsetSums,
    Uncertainty,
    ensemble_uncertainty,
    greedy_selection,
    member_subsets,
    subset_sums,
)
from resflax.metrics.systems import make_systems, score_systems, sum_brier

# Subsets of members of each size above 1 that are averaged, and of all sizes together where there
# are many members.
MAX_CURVE_SUBSETS, MAX_SUBSETS = 8, 64
HELD_OUT, SPLIT_HALVES = "held-out training data", "the other half of the split"


class Request(NamedTuple):
    """Arguments of `assess`.

    Attributes:
      names: the WHERE of each member.
      held_out: evaluates held-out examples of the training split; None without any.
      cross_validate: whether to calibrate on halves of the test split instead.
      alpha: see `Targets`.
      select: number of members to select; 0 for no selection.
      ood: whether to score the examples for comparison with other datasets.
    """

    names: Sequence[str]
    held_out: Callable[[Reduction], Evaluated] | None = None
    cross_validate: bool = False
    alpha: float = 0.0
    select: int = 0
    ood: bool = False


class SplitScores(NamedTuple):
    """Values of each example of the test split that the results are computed from.

    Attributes:
      scores: of each system.
      uncertainty: of all members.
      ood: scores of each system; () unless requested.
      calibrated: after calibration on held-out data; () without it.
      predictions: for calibration on halves of the split; () without it.
    """

    scores: tuple[ExampleScores, ...]
    uncertainty: Uncertainty
    ood: tuple[ood.Scores, ...]
    calibrated: cal.Calibrated | tuple[()]
    predictions: cal.Predictions | tuple[()]


class Sums(NamedTuple):
    """Sums over the test split.

    Attributes:
      brier: of each system.
      subsets: of each subset of members; () if they are summed after calibration.
      calibrated: after calibration on held-out data; () without it.
    """

    brier: tuple[BrierSums, ...]
    subsets: SubsetSums | tuple[()]
    calibrated: cal.CalibratedSums | tuple[()]


class Calibration(NamedTuple):
    """The examples after calibration, and how it was fitted.

    Attributes:
      data: `HELD_OUT` or `SPLIT_HALVES`.
      examples: number of examples that each temperature was fitted to.
      splits: the result with held-out data; or of each random split of the test split into halves,
        over which metrics are averaged.
    """

    data: str
    examples: int
    splits: tuple[cal.CalibratedSplit, ...]

    def temperatures(self, i: int) -> list[float]:
        """Returns all temperatures of a system."""
        return [fitted.temperatures[i] for split in self.splits for fitted in split.fitted]

    def scores(self, i: int) -> list[ExampleScores]:
        """Returns the examples after calibration in each split, for a system."""
        return [split.scores.scores[i] for split in self.splits]

    @property
    def subsets(self) -> SubsetSums | tuple[()]:
        """Sums over the examples of all splits, of each subset of members."""
        total: SubsetSums | tuple[()] = jax.tree.map(
            lambda *sums: np.sum(sums, 0), *(split.sums.subsets for split in self.splits)
        )
        return total


class Assessment(NamedTuple):
    """Results over a split.

    Attributes:
      evaluated: the examples; `evaluated.examples` is `SplitScores`.
      targets: systems and subsets.
      brier: sums of each system.
      subsets: sums of each subset; None for a single network.
      calibration: None without calibration.
    """

    evaluated: Evaluated
    targets: cal.Targets
    brier: tuple[BrierSums, ...]
    subsets: SubsetSums | None
    calibration: Calibration | None

    @property
    def scored(self) -> SplitScores:
        """Values of each example of the test split."""
        scored: SplitScores = self.evaluated.examples
        return scored


def assess(test: Callable[[Reduction], Evaluated], request: Request) -> Assessment:
    """Evaluates held-out data, if there are any, and then the test split.

    Args:
      test: evaluates the test split with a reduction.
      request: what to assess.

    Raises:
      UserError: as `evaluate_split`.
    """
    held_out: cal.Predictions | None = None
    if request.held_out:
        held_out = request.held_out(Reduction(cal.keep)).examples
    selected = _select(held_out, request.select) if held_out and request.select else ()
    members = len(request.names)
    targets = cal.Targets(
        make_systems(request.names, selected),
        _curve_subsets(members) if members > 1 else (),
        request.alpha,
    )
    fitted = cal.fit(targets, held_out.rows()) if held_out else None
    evaluated = test(_reduction(request, targets, fitted))
    scored: SplitScores = evaluated.examples
    sums: Sums = evaluated.sums
    calibration = _calibration(request, targets, fitted, scored, sums, held_out)
    subsets: Any = calibration.subsets if calibration else sums.subsets
    return Assessment(evaluated, targets, sums.brier, subsets or None, calibration)


def _curve_subsets(members: int) -> tuple[tuple[int, ...], ...]:
    """Returns subsets of every size, whose metrics are those against ensemble size."""
    count = max(1, min(MAX_CURVE_SUBSETS, MAX_SUBSETS // members))
    subsets = member_subsets(members, max_subsets=count)
    return (*((k,) for k in range(members)), *(subset for subset in subsets if len(subset) > 1))


def _select(held_out: cal.Predictions, size: int) -> tuple[int, ...]:
    """Selects members greedily on held-out data."""
    rows = held_out.rows()
    label_log_p = rows.log_p[:, range(len(rows.labels)), rows.labels]
    return tuple(sorted(greedy_selection(label_log_p, size).members))


def _reduction(request: Request, targets: cal.Targets, fitted: cal.Fitted | None) -> Reduction:
    def examples(rows: Rows) -> SplitScores:
        return SplitScores(
            scores=score_systems(targets.systems, rows.log_p, rows.labels),
            uncertainty=ensemble_uncertainty(rows.log_p),
            ood=ood.score_rows(targets.systems, rows) if request.ood else (),
            calibrated=cal.calibrate(targets, fitted, rows) if fitted else (),
            predictions=cal.keep(rows) if request.cross_validate else (),
        )

    def sums(rows: Rows) -> Sums:
        is_calibrated = fitted is not None or request.cross_validate
        separate = targets.subsets and not is_calibrated
        return Sums(
            brier=sum_brier(targets.systems, rows.log_p, rows.labels),
            subsets=subset_sums(rows.log_p, rows.labels, targets.subsets) if separate else (),
            calibrated=cal.sum_calibrated(targets, fitted, rows) if fitted else (),
        )

    return Reduction(examples, sums)


def _calibration(
    request: Request,
    targets: cal.Targets,
    fitted: cal.Fitted | None,
    scored: SplitScores,
    sums: Sums,
    held_out: cal.Predictions | None,
) -> Calibration | None:
    if held_out and fitted and scored.calibrated and sums.calibrated:
        split = cal.CalibratedSplit((fitted,), scored.calibrated, sums.calibrated)
        return Calibration(HELD_OUT, len(held_out.labels), (split,))
    if not request.cross_validate or not scored.predictions:
        return None
    count = len(scored.predictions.labels)
    if count < 2:
        raise UserError(
            "one example cannot be calibrated by another half of the split: expected"
            " --calibrate=none"
        )
    seeds = range(cal.number_of_splits(scored.predictions))
    splits = tuple(cal.cross_validate(targets, scored.predictions, seed) for seed in seeds)
    return Calibration(SPLIT_HALVES, count // 2, splits)
