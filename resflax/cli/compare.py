"""`resflax compare RUN RUN ...`: figures, configs and curves of several runs."""

import argparse
import json
from typing import Any

from resflax.cli.arguments import check_output
from resflax.cli.text_table import number, text_table
from resflax.errors import Parser, UserError
from resflax.files import path_type
from resflax.progress import format_seconds
from resflax.run.run_summary import RunSummary, differing_keys, read_run
from resflax.zoo.cost import format_count

DESCRIPTION = """Compares runs: a table of their final and best figures, the keys in which their
configs differ, and their curves. Runs that have not finished are shown as such."""
MAX_VALUE = 40  # characters of a value of a config


def main(arguments: list[str]) -> None:
    """Compares runs.

    Raises:
      UserError: if a path is not a workdir or is given twice, or the figure cannot be written.
    """
    parser = Parser(prog="resflax compare", description=DESCRIPTION)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="workdirs")
    parser.add_argument(
        "--curves", type=path_type, metavar="FILE.png", help="draw loss and accuracy of all runs"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    args = parser.parse_args(arguments)
    check_output("--curves", args.curves, [".png"])
    runs = [read_run(path) for path in args.runs]
    _check_distinct(runs)
    print(json.dumps(as_json(runs), indent=1) if args.json else as_text(runs))
    if args.curves:
        draw(runs, args)


def _check_distinct(runs: list[RunSummary]) -> None:
    seen = set()
    for run in runs:
        if run.path.resolve() in seen:
            raise UserError(f"{run.path} is given twice: expected different runs")
        seen.add(run.path.resolve())


def draw(runs: list[RunSummary], args: argparse.Namespace) -> None:
    """Draws the curves of all runs in one figure."""
    from resflax.run.curves import draw_comparison  # imports matplotlib

    draw_comparison({str(run.path): run.records for run in runs}, args.curves)


def as_json(runs: list[RunSummary]) -> dict[str, Any]:
    """Returns the comparison as JSON values."""
    differences = differing_keys(runs)
    return {
        "runs": [
            {"path": str(run.path), **run.figures()}
            | {"config": {key: row[k] for key, row in differences.items()}}
            for k, run in enumerate(runs)
        ]
    }


def as_text(runs: list[RunSummary]) -> str:
    """Returns the comparison as two tables."""
    header = ["run", "test acc.", "best", "at step", "test loss", "parameters", "time"]
    header += ["examples/s", "state"]
    has_validation = any(run.best_by == "validation" for run in runs)
    if has_validation:
        header.insert(1, "val. acc.")
    rows = []
    for run in runs:
        figures = run.figures()
        row = [
            str(run.path),
            number(figures["test_accuracy"]),
            number(figures["best_accuracy"]),
            number(figures["best_step"], "d"),
            number(figures["test_loss"]),
            "-" if figures["parameters"] is None else format_count(figures["parameters"]),
            "-" if figures["wall_seconds"] is None else format_seconds(figures["wall_seconds"]),
            number(figures["examples_per_second"], ",.0f"),
            figures["state"],
        ]
        if has_validation:
            row.insert(1, number(figures["validation_accuracy"]))
        rows.append(row)
    text = text_table(header, rows)
    differences = differing_keys(runs)
    if len(runs) == 1:
        return text
    if not differences:
        return f"{text}\n\nThe configs are equal."
    keys = [
        [f"config.{key}", *(_shorten(value) for value in row)] for key, row in differences.items()
    ]
    return f"{text}\n\n{text_table(['', *(str(run.path) for run in runs)], keys)}"


def _shorten(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 3]}..."
