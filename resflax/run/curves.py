"""`curves.png`: loss and accuracy over training steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


def draw_curves(records: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Plots the records of a run: loss in nats on a log scale, accuracy in percent."""
    figure, axes = new_figure(2, height=3.4)
    for ax, key, label in zip(
        axes, ("loss", "accuracy"), ("loss (nats)", "accuracy (%)"), strict=True
    ):
        for split, style in STYLES.items():
            rows = [r for r in records if r["split"] == split]
            values = [100 * r[key] if key == "accuracy" else r[key] for r in rows]
            ax.plot([r["step"] for r in rows], values, label=split, **style)
        ax.set(xlabel="step", ylabel=label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_yscale("log")
    axes[1].legend(frameon=False, loc="lower right")
    save(figure, path, title)
