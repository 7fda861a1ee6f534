"""`curves.png`: loss and accuracy over training steps."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter, MaxNLocator, NullLocator, StrMethodFormatter

from resflax.plotting import line_style, new_figure, plain_text, save

EVALUATED: dict[str, Any] = {
    "color": "#1f4e8c",
    "linewidth": 2.0,
    "linestyle": "-",
    "marker": ".",
    "markersize": 5,
}
# Distinguishable in grayscale print too.
STYLES: dict[str, dict[str, Any]] = {
    "train": {"color": "#8a8a8a", "linewidth": 1.0, "linestyle": "-"},
    "validation": EVALUATED,
    "test": EVALUATED,
}
# The test split of a run with a validation split, which is evaluated at the end only.
FINAL_STYLE: dict[str, Any] = {"color": "#b4372f", "linestyle": "none", "marker": "D"}
MEMBER_STYLE: dict[str, Any] = {"color": "#8db3de", "linewidth": 0.7, "linestyle": "-"}
# A log axis whose limits differ by less than this factor has no decades to label.
NARROW = 5.0
# More lines than this one could not tell apart: they get one style and one label.
MAX_NAMED_MEMBERS = 6


class _Line(NamedTuple):
    steps: list[int]
    values: Float[np.ndarray, " steps"]  # NaN for missing ones
    style: dict[str, Any]


class _PlainNumbers(LogFormatter):
    """Labels the ticks that `LogFormatter` labels with plain numbers, 2.2 and not 2.2 x 10^0."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _lines(records: Sequence[dict[str, Any]], key: str, members: Sequence[str]) -> Iterator[_Line]:
    """Yields the lines of one plot, the members' first so that they are behind the others."""
    by_split = {split: [r for r in records if r["split"] == split] for split in STYLES}
    evaluated = "validation" if by_split["validation"] else "test"
    with_members = [r for r in by_split[evaluated] if "members" in r]
    is_named = 0 < len(members) <= MAX_NAMED_MEMBERS
    for k, values in enumerate(np.array([r["members"][key] for r in with_members], np.float64).T):
        style = MEMBER_STYLE | ({"label": f"members, {evaluated}"} if k == 0 else {})
        if is_named:
            style = MEMBER_STYLE | line_style(k) | {"label": f"{members[k]}, {evaluated}"}
        yield _Line([r["step"] for r in with_members], values, style)
    for split, rows in by_split.items():
        if not rows and split != "train":
            continue
        values = np.array([r[key] for r in rows], np.float64)
        style = FINAL_STYLE if split != evaluated and split == "test" else STYLES[split]
        networks = "members' mean, " if split == "train" else "ensemble, "
        label = f"{networks if with_members else ''}{split}"
        yield _Line([r["step"] for r in rows], values, style | {"label": label})


def draw_curves(
    records: Sequence[dict[str, Any]], path: Path, title: str, members: Sequence[str] = ()
) -> None:
    """Plots the records of a run: loss in nats on a log scale, accuracy in percent.

    Thin lines show the evaluations of an ensemble's members.

    Args:
      records: of `metrics.jsonl`.
      path: of the figure.
      title: of the figure.
      members: a name for each member, which up to `MAX_NAMED_MEMBERS` of them get in the legend.
    """
    figure, axes = new_figure(2, height=3.4)
    for ax, key, label in zip(
        axes, ("loss", "accuracy"), ("loss (nats)", "accuracy (%)"), strict=True
    ):
        factor = 100.0 if key == "accuracy" else 1.0
        for line in _lines(records, key, members):
            ax.plot(line.steps, factor * line.values, **line.style)
        ax.set(xlabel="step", ylabel=label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:.6g}"))  # no offset, as 1e-3 + 0.69
    _scale_loss(axes[0])
    axes[1].legend(frameon=False, loc="lower right", fontsize=8)
    save(figure, path, title)


def draw_comparison(runs: Mapping[str, Sequence[dict[str, Any]]], path: Path) -> None:
    """Plots the evaluations of several runs, and their training values as thin lines.

    The split is the one that each run evaluates during training. The x-axis is the epoch, since the
    batches of runs can have different sizes.

    Args:
      runs: records of `metrics.jsonl` by the name of the run.
      path: of the figure.
    """
    figure, axes = new_figure(2, height=3.4 + 0.2 * len(runs))
    for k, (name, records) in enumerate(runs.items()):
        by_split = {split: [r for r in records if r["split"] == split] for split in STYLES}
        evaluated = "validation" if by_split["validation"] else "test"
        color = line_style(k)["color"]
        for ax, key, factor in ((axes[0], "loss", 1.0), (axes[1], "accuracy", 100.0)):
            for split, style in ((evaluated, line_style(k)), ("train", {"color": color})):
                rows = by_split[split]
                values = factor * np.array([row[key] for row in rows], np.float64)
                thin = {"linewidth": 0.6, "alpha": 0.6} if split == "train" else {"label": name}
                ax.plot([row["epoch"] for row in rows], values, **style | thin)
    axes[0].set(xlabel="epoch", ylabel="loss (nats)")
    axes[1].set(xlabel="epoch", ylabel="accuracy (%)")
    _scale_loss(axes[0])
    handles, labels = axes[1].get_legend_handles_labels()
    labels = [plain_text(label) for label in labels]
    figure.legend(handles, labels, loc="outside lower center", frameon=False, fontsize=8)
    save(figure, path, "evaluation (thick) and training (thin)")


def _scale_loss(ax: Axes) -> None:
    """Makes the loss axis logarithmic, with labels also on a narrow range; linear for zeros."""
    values = np.concatenate([np.ravel(line.get_ydata()) for line in ax.lines] or [np.ones(1)])
    values = values[np.isfinite(values) & (values > 0)]
    if not len(values):
        return
    ax.set_yscale("log")
    low, high = values.min(), values.max()
    if high < NARROW * low:
        margin = max(0.05 * (high - low), 1e-4 * high)
        ax.set_ylim(low - margin, high + margin)
        ax.yaxis.set_major_locator(MaxNLocator(6))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:.6g}"))
    else:
        ax.yaxis.set_major_formatter(_PlainNumbers())
        ax.yaxis.set_minor_formatter(_PlainNumbers(minor_thresholds=(2, 0.5)))
