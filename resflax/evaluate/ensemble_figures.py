"""Figures of an ensemble: reliability, ensemble size, and risk against coverage.

The members are thin lines, the ensemble is a bold one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from resflax.metrics import ExampleScores, equal_mass_bins
from resflax.metrics.calibration import BINS
from resflax.metrics.risk_coverage import risk_coverage
from resflax.plotting import SHADES, legend_above, new_figure, save

BOLD: dict[str, Any] = {"color": SHADES[2], "linewidth": 2.4}
CALIBRATED: dict[str, Any] = {"color": SHADES[4], "linewidth": 1.8, "linestyle": "--"}
THIN: dict[str, Any] = {"color": SHADES[0], "linewidth": 0.8}
# A bin of a reliability diagram has at least so many examples, as long as there are 5 bins.
BIN_EXAMPLES, MIN_BINS = 133, 5
# Points of a risk-coverage curve that are drawn.
MAX_POINTS = 1000


def draw_ensemble_reliability(
    members: Sequence[ExampleScores],
    ensemble: ExampleScores,
    calibrated: ExampleScores | None,
    path: Path,
    title: str,
) -> None:
    """Draws accuracy against confidence in bins of equally many examples, and its errors.

    There are 15 bins from 2,000 examples on, and fewer of less, since small bins show noise. Bins
    of equal width would be almost empty below the confidence of most examples.

    Args:
      members: scores of each member.
      ensemble: scores of the ensemble.
      calibrated: its scores after temperature scaling, if there are any.
      path: where to write the figure.
      title: title of the figure.
    """
    figure, (ax, gaps) = new_figure(2, width=9.0, height=4.0)
    ax.plot([0, 1], [0, 1], color=SHADES[3], linestyle=":", linewidth=1)
    gaps.axhline(0, color=SHADES[3], linestyle=":", linewidth=1)
    bins = number_of_bins(len(ensemble.label))
    for i, scores in enumerate(members):
        _draw_bins(ax, gaps, scores, bins, **THIN, label="" if i else "members")
    _draw_bins(ax, gaps, ensemble, bins, **BOLD, marker="o", markersize=4, label="ensemble")
    if calibrated:
        _draw_bins(ax, gaps, calibrated, bins, **CALIBRATED, label="ensemble, calibrated")
    lowest = min(line.get_xdata()[0] for line in ax.lines[1:])
    low = max(0.0, float(np.floor(10 * float(lowest)) / 10))
    ax.set(xlim=(low, 1.005), xlabel="mean confidence of the bin", ylabel="accuracy")
    ax.set_ylim(top=1.01)
    gaps.set(xlim=(low, 1.005), xlabel="mean confidence of the bin")
    gaps.set_ylabel("accuracy - confidence")
    legend_above(ax)
    save(figure, path, title)


def number_of_bins(examples: int) -> int:
    """Returns the number of bins of a reliability diagram of an ensemble.

    >>> number_of_bins(360), number_of_bins(1000), number_of_bins(10_000)
    (5, 7, 15)
    """
    return min(BINS, max(MIN_BINS, examples // BIN_EXAMPLES))


def _draw_bins(ax: Axes, gaps: Axes, scores: ExampleScores, count: int, **style: Any) -> None:
    bins = equal_mass_bins(scores, count)
    filled = bins.examples > 0
    confidence, accuracy = bins.confidence[filled], bins.accuracy[filled]
    ax.plot(confidence, accuracy, **style)
    gaps.plot(confidence, accuracy - confidence, **style)


def draw_size(values: dict[str, Any], path: Path, title: str) -> None:
    """Draws accuracy and negative log-likelihood against the number of members.

    Args:
      values: results of an ensemble, see `resflax.evaluate.report.results`.
      path: where to write the figure.
      title: title of the figure.
    """
    curve, members = values["size_curve"], values["members"]
    figure, (accuracy, nll) = new_figure(2, width=9.0, height=3.8)
    ones = [1] * len(members)
    for ax, key, label in (
        (accuracy, "accuracy", "accuracy"),
        (nll, "nll", "negative log-likelihood, nats"),
    ):
        ax.plot(
            ones, [m[key] for m in members], "o", color=SHADES[0], markersize=4, label="members"
        )
        ax.plot(curve["size"], curve[key], **BOLD, marker="o", markersize=4, label="ensembles")
        ax.set(xlabel="number of members", ylabel=label)
        ax.set_xticks(curve["size"] if len(curve["size"]) <= 10 else curve["size"][::2])
    if "calibrated_nll" in curve:
        nll.plot(curve["size"], curve["calibrated_nll"], **CALIBRATED, label="calibrated")
    legend_above(nll)
    save(figure, path, title)


def draw_risk_coverage(
    members: Sequence[ExampleScores], ensemble: ExampleScores, path: Path, title: str
) -> None:
    """Draws the error among the most confident examples against their share."""
    figure, (ax,) = new_figure(1, width=5.4, height=4.0)
    name = "ensemble" if members else "network"
    for i, scores in enumerate(members):
        _draw_risk(ax, scores, **THIN, label="" if i else "members")
    _draw_risk(ax, ensemble, **BOLD, label=name)
    ax.set(xlabel="coverage: share of the examples that are kept", ylabel="error among them")
    ax.set_xlim(0, 1)
    ax.set_ylim(bottom=0)
    legend_above(ax)
    save(figure, path, title)


def _draw_risk(ax: Axes, scores: ExampleScores, **style: Any) -> None:
    curve = risk_coverage(scores.confidence, scores.is_correct)
    count = len(curve.risk)
    shown = np.unique(np.linspace(0, count - 1, min(count, MAX_POINTS)).astype(int))
    ax.plot(curve.coverage[shown], curve.risk[shown], **style)
