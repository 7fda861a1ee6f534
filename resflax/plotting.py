"""One style for every picture: readable in grey print, no display needed."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from resflax.files import write_atomic

# From light to dark, each with a dash of its own: told apart in grey print too.
SHADES = ("#9a9a9a", "#6f8fbf", "#1f4e8c", "#101820", "#b5651d", "#5b8a3c")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))


def new_figure(
    columns: int, *, rows: int = 1, width: float = 9.0, height: float = 3.6
) -> tuple[Figure, Any]:
    """A figure of `width` x `height` inches; its axes are always a list, row after row."""
    # A figure of its own, not pyplot's: no display, no global state.
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for ax in axes:
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def line_style(i: int) -> dict[str, Any]:
    """Colour and dash of the i-th of several lines."""
    return {"color": SHADES[i % len(SHADES)], "linestyle": DASHES[i % len(DASHES)]}


def mean_and_range(
    ax: Axes, x: Sequence[float], rows: Sequence[Sequence[float]], **style: Any
) -> None:
    """A line through the means of rows, and a light band from their least to their greatest.

    Args:
      ax: to draw on.
      x: where each row stands.
      rows: values at each `x`, one a seed; with one seed the band has no height.
      style: of the line, as of `ax.plot`, with its color.
    """
    ax.plot(x, [sum(row) / len(row) for row in rows], **style)
    minimum, maximum = ([pick(row) for row in rows] for pick in (min, max))
    ax.fill_between(x, minimum, maximum, color=style["color"], alpha=0.15, linewidth=0)


def legend_above(ax: Axes) -> None:
    """A legend in rows of four above the axes, where it hides no line and no band."""
    columns = min(4, len(ax.get_legend_handles_labels()[1]))
    place: Any = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "borderaxespad": 0.2}
    row: Any = {"ncols": columns, "columnspacing": 1.4, "handlelength": 3.2}
    ax.legend(frameon=False, fontsize=8, **row, **place)


def save(figure: Figure, path: Path, title: str = "") -> None:
    """Writes a PNG, whole or not at all."""
    if title:
        figure.suptitle(title, fontsize=10)
    png = BytesIO()
    figure.savefig(png, format="png")
    write_atomic(path, png.getvalue())
