"""All figures of an evaluation, as rows of a table."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from resflax.evaluate.assess import Assessment
from resflax.evaluate.corruption_figure import draw_corruptions
from resflax.evaluate.ensemble_figures import (
    draw_ensemble_reliability,
    draw_risk_coverage,
    draw_size,
)
from resflax.evaluate.figures import draw_confusion, draw_reliability
from resflax.metrics import ExampleScores


class Drawn(NamedTuple):
    """Data of the figures.

    Attributes:
      members: scores of each member; none of a single network.
      scores: scores of the ensemble or network.
      calibrated: the same after temperature scaling; None without calibration.
      values: see `resflax.evaluate.report.results`.
    """

    members: Sequence[ExampleScores]
    scores: ExampleScores
    calibrated: ExampleScores | None
    values: dict[str, Any]

    @property
    def is_ensemble(self) -> bool:
        """Whether there are members."""
        return bool(self.members)


def _draw_reliability(drawn: Drawn, path: Path, title: str) -> None:
    if drawn.is_ensemble:
        members, scores, calibrated = drawn.members, drawn.scores, drawn.calibrated
        draw_ensemble_reliability(members, scores, calibrated, path, title)
    else:
        draw_reliability(drawn.scores, path, title)


def _draw_confusion(drawn: Drawn, path: Path, title: str) -> None:
    names = drawn.values["classes"]
    confusion = np.zeros((len(names), len(names)), np.int64)
    np.add.at(confusion, (drawn.scores.label, drawn.scores.prediction), 1)
    draw_confusion(confusion, names, path, title)


class Figure(NamedTuple):
    """Row of `FIGURES`: whether a figure is drawn, and how."""

    is_drawn: Callable[[Drawn], bool]
    draw: Callable[[Drawn, Path, str], None]


FIGURES: dict[str, Figure] = {
    "reliability.png": Figure(lambda drawn: True, _draw_reliability),
    "confusion.png": Figure(lambda drawn: True, _draw_confusion),
    "risk_coverage.png": Figure(
        lambda drawn: True,
        lambda drawn, path, title: draw_risk_coverage(drawn.members, drawn.scores, path, title),
    ),
    "size.png": Figure(
        lambda drawn: drawn.is_ensemble,
        lambda drawn, path, title: draw_size(drawn.values, path, title),
    ),
    "corruptions.png": Figure(
        lambda drawn: "corruptions" in drawn.values,
        lambda drawn, path, title: draw_corruptions(drawn.values, path, title),
    ),
}


def _pooled(splits: Sequence[ExampleScores]) -> ExampleScores:
    """Returns the examples of all random splits together."""
    pooled: ExampleScores = jax.tree.map(lambda *arrays: np.concatenate(arrays), *splits)
    return pooled


def draw_all(assessment: Assessment, values: dict[str, Any], folder: Path, title: str) -> list[str]:
    """Draws the figures of `FIGURES` that apply; returns the names of their files."""
    systems, scores = assessment.targets.systems, assessment.scored.scores
    count = len(systems[0].members)
    calibration = assessment.calibration
    drawn = Drawn(
        members=scores[1 : count + 1] if count > 1 else (),
        scores=scores[0],
        calibrated=_pooled(calibration.scores(0)) if calibration else None,
        values=values,
    )
    title = f"{title}\naccuracy {values['accuracy']:.4f}"
    names = [name for name, figure in FIGURES.items() if figure.is_drawn(drawn)]
    for name in names:
        FIGURES[name].draw(drawn, folder / name, title)
    return names
