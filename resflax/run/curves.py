"""`curves.png`: loss and accuracy over training steps."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.ticker import MaxNLocator

from resflax.plotting import new_figure, save

# Distinguishable in grayscale print too.
STYLES: dict[str, dict[str, Any]] = {
    "train": {"color": "#8a8a8a", "linewidth": 1.0, "linestyle": "-"},
    "test": {
        "color": "#1f4e8c",
        "linewidth": 2.0,
        "linestyle": "-",
        "marker": ".",
        "markersize": 5,
    },
}
MEMBER_STYLE: dict[str, Any] = {"color": "#8db3de", "linewidth": 0.7, "linestyle": "-"}


class _Line(NamedTuple):
    steps: list[int]
    values: Float[np.ndarray, " steps"]  # NaN for missing ones
    style: dict[str, Any]


def _lines(records: Sequence[dict[str, Any]], key: str) -> Iterator[_Line]:
    """Yields the lines of one plot, the members' first so that they are behind the others."""
    tests = [r for r in records if r["split"] == "test" and "members" in r]
    members = np.array([r["members"][key] for r in tests], np.float64).T
    for k, values in enumerate(members):
        label = {"label": "members"} if k == 0 else {}
        yield _Line([r["step"] for r in tests], values, MEMBER_STYLE | label)
    for split, style in STYLES.items():
        rows = [r for r in records if r["split"] == split]
        values = np.array([r[key] for r in rows], np.float64)
        yield _Line([r["step"] for r in rows], values, style | {"label": split})


def draw_curves(records: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Plots the records of a run: loss in nats on a log scale, accuracy in percent.

    Of an ensemble, thin lines show the evaluations of its members.
    """
    figure, axes = new_figure(2, height=3.4)
    for ax, key, label in zip(
        axes, ("loss", "accuracy"), ("loss (nats)", "accuracy (%)"), strict=True
    ):
        factor = 100.0 if key == "accuracy" else 1.0
        for line in _lines(records, key):
            ax.plot(line.steps, factor * line.values, **line.style)
        ax.set(xlabel="step", ylabel=label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_yscale("log")
    axes[1].legend(frameon=False, loc="lower right")
    save(figure, path, title)
