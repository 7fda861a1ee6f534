"""Figures of an evaluation: reliability diagram and confusion matrix."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes

from resflax.metrics import ExampleScores, equal_width_bins
from resflax.plotting import SHADES, legend_above, new_figure, plain_text, save

# Numbers of classes up to which the confusion matrix has names, numbers and a cell per class.
MAX_NAMED_CLASSES = 30
MAX_NUMBERED_CLASSES = 15
MAX_CELLS = 100
LISTED_CONFUSIONS = 20


def draw_reliability(scores: ExampleScores, path: Path, title: str) -> None:
    """Draws accuracy against confidence in 15 bins, and the number of examples in each.

    DeGroot and Fienberg 1983; Guo et al. 2017 (arXiv:1706.04599), figure 1.
    """
    bins = equal_width_bins(scores)
    figure, (ax, counts) = new_figure(2, width=9.0, height=3.8)
    centers = (np.arange(len(bins.examples)) + 0.5) / len(bins.examples)
    width, filled = 1 / len(bins.examples), bins.examples > 0
    ax.plot([0, 1], [0, 1], color=SHADES[3], linestyle="--", linewidth=1, label="calibrated")
    ax.bar(centers[filled], bins.accuracy[filled], 0.92 * width, color=SHADES[1], label="accuracy")
    ax.plot(
        bins.confidence[filled], bins.accuracy[filled], "o", color=SHADES[2], markersize=4,
        label="mean confidence of the bin",
    )  # fmt: skip
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
    legend_above(ax)
    counts.bar(centers, bins.examples / bins.examples.sum(), 0.92 * width, color=SHADES[0])
    for value, style, name in (
        (float(scores.confidence.mean()), "-", "mean confidence"),
        (float(scores.is_correct.mean()), "--", "accuracy"),
    ):
        label = f"{name} {value:.4f}"
        counts.axvline(value, color=SHADES[2], linestyle=style, linewidth=1.2, label=label)
    counts.set(xlim=(0, 1), xlabel="confidence", ylabel="share of the examples")
    legend_above(counts)
    save(figure, path, f"{title}, expected calibration error {bins.calibration_error:.4f}")


def draw_confusion(
    confusion: Int[np.ndarray, "classes classes"], names: Sequence[str], path: Path, title: str
) -> None:
    """Draws the share of each prediction (column) among the examples of each class (row).

    With more than `MAX_CELLS` classes, a cell is a block of consecutive classes; with more than
    `MAX_NAMED_CLASSES`, a second panel lists the most frequent confusions by name.
    """
    classes = len(names)
    named = classes <= MAX_NAMED_CLASSES
    side = min(9.0, max(4.5, 1.5 + 0.3 * classes)) if named else 6.4
    figure, axes = new_figure(
        1 if named else 2, width=side + 0.8 if named else side + 5.2, height=side
    )
    ax, block = axes[0], -(-classes // MAX_CELLS)
    sums = _sum_blocks(confusion, block)
    shares = sums / np.maximum(sums.sum(1, keepdims=True), 1)
    extent = (-0.5, len(sums) * block - 0.5, len(sums) * block - 0.5, -0.5)
    # The square root makes rare confusions visible.
    image = ax.imshow(
        np.sqrt(shares), cmap="Blues", vmin=0, vmax=1, interpolation="nearest", extent=extent
    )
    ax.grid(visible=False)
    unit = f", in blocks of {block} classes" if block > 1 else ""
    ax.set(xlabel=f"prediction{unit}", ylabel=f"label{unit}")
    bar = figure.colorbar(image, ax=ax, fraction=0.046, ticks=np.sqrt([0, 0.01, 0.1, 0.5, 1]))
    bar.ax.set_yticklabels(["0", "1 %", "10 %", "50 %", "100 %"])
    if named:
        short = [plain_text(name[:18]) for name in names]
        ax.set_xticks(range(classes), short, rotation=90, fontsize=8)
        ax.set_yticks(range(classes), short, fontsize=8)
    else:
        ax.get_gridspec().set_width_ratios([2.4, 1])
        _list_confusions(axes[1], confusion, names)
    if classes <= MAX_NUMBERED_CLASSES:
        _write_counts(ax, confusion, shares)
    save(figure, path, title)


def _sum_blocks(
    confusion: Int[np.ndarray, "classes classes"], block: int
) -> Int[np.ndarray, "blocks blocks"]:
    """Sums squares of `block` rows and columns."""
    starts = np.arange(0, len(confusion), block)
    return np.add.reduceat(np.add.reduceat(confusion, starts, 0), starts, 1)


def _write_counts(
    ax: Axes,
    confusion: Int[np.ndarray, "classes classes"],
    shares: Float[np.ndarray, "classes classes"],
) -> None:
    for (row, column), count in np.ndenumerate(confusion):
        color = "white" if shares[row, column] > 0.3 else "black"
        if count:
            ax.text(column, row, f"{count}", ha="center", va="center", fontsize=7, color=color)


def _list_confusions(
    ax: Axes, confusion: Int[np.ndarray, "classes classes"], names: Sequence[str]
) -> None:
    wrong = confusion - np.diag(confusion.diagonal())
    order = np.argsort(-wrong, axis=None, kind="stable")[:LISTED_CONFUSIONS]
    rows = [(int(i) // len(names), int(i) % len(names)) for i in order]
    lines = [
        f"{wrong[row, column]:5}  {names[row][:20]} as {names[column][:20]}"
        for row, column in rows
        if wrong[row, column]
    ]
    ax.set_axis_off()
    ax.set_title("most frequent confusions", fontsize=9, loc="left")
    ax.text(
        0,
        1,
        plain_text("\n".join(lines)),
        va="top",
        fontsize=8,
        family="monospace",
        linespacing=1.5,
    )
