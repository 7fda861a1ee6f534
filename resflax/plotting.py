"""One style for all figures: readable in grayscale print, no display needed."""

import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from resflax.files import replace_undecodable, write_atomic

# From light to dark, each with its own dashes, to be distinguishable in grayscale print.
SHADES = ("#9a9a9a", "#6f8fbf", "#1f4e8c", "#101820", "#b5651d", "#5b8a3c")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))


def new_figure(
    columns: int, *, rows: int = 1, width: float = 9.0, height: float = 3.6
) -> tuple[Figure, Any]:
    """Creates a figure of `width` x `height` inches and a list of its axes, row by row."""
    # Without pyplot: no display, no global state.
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for ax in axes:
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def line_style(i: int) -> dict[str, Any]:
    """Returns color and dashes of the i-th of several lines."""
    return {"color": SHADES[i % len(SHADES)], "linestyle": DASHES[i % len(DASHES)]}


def mean_and_range(
    ax: Axes, x: Sequence[float], rows: Sequence[Sequence[float]], **style: Any
) -> None:
    """Plots a line through the means of rows, and a band from their minima to their maxima.

    Args:
      ax: axes to draw on.
      x: position of each row.
      rows: values at each `x`, one per seed.
      style: style of the line, as in `ax.plot`, including its color.
    """
    ax.plot(x, [sum(row) / len(row) for row in rows], **style)
    minima, maxima = ([reduce(row) for row in rows] for reduce in (min, max))
    ax.fill_between(x, minima, maxima, color=style["color"], alpha=0.15, linewidth=0)


def legend_above(ax: Axes) -> None:
    """Draws the legend above the axes, in rows of four, where it covers no line."""
    columns = min(4, len(ax.get_legend_handles_labels()[1]))
    place: Any = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "borderaxespad": 0.2}
    spacing: Any = {"ncols": columns, "columnspacing": 1.4, "handlelength": 3.2}
    ax.legend(frameon=False, fontsize=8, **spacing, **place)


def plain_text(text: str) -> str:
    r"""Escapes what Matplotlib cannot draw: formulas in dollar signs, names that are not UTF-8.

    >>> print(plain_text("costs $5"))
    costs \$5
    """
    return replace_undecodable(text).replace("$", r"\$")


def save(figure: Figure, path: Path, title: str = "") -> None:
    """Writes the figure as a PNG, atomically."""
    if title:
        figure.suptitle(plain_text(title), fontsize=10)
    png = BytesIO()
    with warnings.catch_warnings():
        # Class names can have characters that the font lacks; they are drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(png, format="png")
    write_atomic(path, png.getvalue())
