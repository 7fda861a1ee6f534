"""Figure of accuracy against the severity of corruptions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resflax.evaluate.ensemble_figures import BOLD, THIN
from resflax.plotting import SHADES, new_figure, save

MAX_COLUMNS = 5
CLEAN = {"color": SHADES[3], "linestyle": ":", "linewidth": 1}


def draw_corruptions(values: dict[str, Any], path: Path, title: str) -> None:
    """Draws a panel with the mean over the corruptions and one for each of them.

    Severity 0 is without corruption. The members of an ensemble are thin lines, the ensemble or
    network is a bold one.

    Args:
      values: results with "corruptions", see `resflax.evaluate.report.results`.
      path: where to write the figure.
      title: title of the figure.
    """
    found = values["corruptions"]
    names = list(found["accuracy"])
    panels = ["mean", *names] if len(names) > 1 else names
    columns = min(MAX_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = new_figure(
        columns, rows=rows, width=max(4.6, 2.1 * columns), height=1.0 + max(2.6, 1.9 * rows)
    )
    clean_members = [member["accuracy"] for member in values.get("members", ())]
    for ax, panel in zip(axes, panels, strict=False):
        for clean, member in zip(clean_members, found.get("members", ()), strict=True):
            _draw(ax, found["severities"], clean, member, panel, THIN | {"label": "members"})
        label = "ensemble" if clean_members else "network"
        _draw(ax, found["severities"], values["accuracy"], found, panel, BOLD | {"label": label})
        ax.axhline(values["accuracy"], **CLEAN, label="without corruption")
        ax.set_title(panel.replace("_", " "), fontsize=9)
        ax.set_xticks([0, *found["severities"]])
    _share_scale(axes[: len(panels)], columns)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    _legend(figure, axes[0])
    save(figure, path, title)


def _draw(
    ax: Axes,
    severities: list[int],
    clean: float,
    found: Mapping[str, Any],
    panel: str,
    style: dict[str, Any],
) -> None:
    rows = list(found["accuracy"].values()) if panel == "mean" else [found["accuracy"][panel]]
    ax.plot([0, *severities], [clean, *np.mean(rows, 0)], **style)


def _share_scale(axes: list[Axes], columns: int) -> None:
    """Gives all panels the same range, with numbers and names at the outer ones only."""
    low = min(ax.get_ylim()[0] for ax in axes)
    high = max(ax.get_ylim()[1] for ax in axes)
    for i, ax in enumerate(axes):
        ax.set_ylim(low, high)
        if i % columns:
            ax.tick_params(labelleft=False)
        else:
            ax.set_ylabel("accuracy")
        if i + columns >= len(axes):
            ax.set_xlabel("severity")


def _legend(figure: Figure, ax: Axes) -> None:
    """Draws a legend below the panels, with one entry for all members."""
    lines = {str(line.get_label()): line for line in ax.lines}
    figure.legend(
        lines.values(),
        lines,
        loc="outside lower center",
        ncols=len(lines),
        frameon=False,
        fontsize=8,
    )
