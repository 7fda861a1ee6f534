"""The results of a sweep: mean and standard deviation over seeds, the best setting."""

import shlex
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from resflax.cli.text_table import text_table

SEED = "seed"


def summarize(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the mean and the standard deviation over the seeds of each setting.

    Args:
      rows: of the runs, see `train_job`.

    Returns:
      For each setting "texts", without the seed; "runs", their number; "diverged", the number of
      those that diverged, which have no figures; and, of each figure, "KEY" (mean) and "KEY_std"
      (with n - 1; None for one run).
    """
    groups: dict[tuple[tuple[str, str], ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(_setting(row).items()), []).append(row)
    summary = []
    for setting, group in groups.items():
        values: dict[str, Any] = {
            "texts": dict(setting),
            "runs": len(group),
            "diverged": sum(bool(row["diverged_at"]) for row in group),
        }
        for key in ("validation_accuracy", "validation_loss", "test_accuracy", "test_loss"):
            known = [row[key] for row in group if row.get(key) is not None]
            if any(key in row for row in group):
                values[key] = statistics.fmean(known) if known else None
                values[f"{key}_std"] = statistics.stdev(known) if len(known) > 1 else None
        summary.append(values)
    return summary


def best_setting(summary: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any] | None, str]:
    """Returns the setting with the highest mean accuracy, and the split that it is of.

    It is the validation split if there is one, else the test split. Settings of which a run
    diverged are left out; without others there is no best one.
    """
    split = "validation" if any("validation_accuracy" in row for row in summary) else "test"
    key = f"{split}_accuracy"
    valid = [row for row in summary if not row["diverged"] and row.get(key) is not None]
    return max(valid, key=lambda row: row[key], default=None), split


def sweep_table(summary: Sequence[Mapping[str, Any]]) -> str:
    """Returns the settings as a table, in the order of the grid."""
    names = ("validation_accuracy", "test_accuracy", "test_loss")
    columns = [name for name in names if any(name in row for row in summary)]
    rows = []
    for row in summary:
        setting = " ".join(f"{key}={text}" for key, text in row["texts"].items()) or "all"
        cells = [_mean_std(row.get(key), row.get(f"{key}_std")) for key in columns]
        rows.append([setting, str(row["runs"]), *cells, str(row["diverged"] or "-")])
    titles = [name.replace("_", " ") for name in columns]
    return text_table(["setting", "runs", *titles, "diverged"], rows)


def describe_best(values: Mapping[str, Any], train_arguments: Sequence[str]) -> str:
    """Returns lines with the best setting, and the command that trains it.

    Args:
      values: "rows" and "summary".
      train_arguments: arguments of the sweep for `resflax train`.
    """
    best, split = best_setting(values["summary"])
    if best is None:
        return "best: none, since a run of each setting diverged"
    key = f"{split}_accuracy"
    text = f"best: {split} accuracy {_mean_std(best[key], best[f'{key}_std'])}"
    if split == "test" and len(values["summary"]) > 1:
        text += (
            ", which is optimistic, since the test split chose it: config.data.validation=0.1 holds"
            " out data to choose by"
        )
    where = [row["where"] for row in values["rows"] if _setting(row) == best["texts"]]
    text += f"\ntrained: {' '.join(where)}"
    # Of a key that is given twice, in two words, the last value holds.
    replaced = tuple(f"--config.{key}=" for key in best["texts"])
    others = [word for word in train_arguments if not word.startswith(replaced)]
    flags = [f"--config.{key}={value}" for key, value in best["texts"].items()]
    return f"{text}\n{shlex.join(['resflax', 'train', *others, *flags])}"


def _setting(row: Mapping[str, Any]) -> dict[str, str]:
    """Returns the texts of a run without that of its seed."""
    return {key: text for key, text in row["texts"].items() if key != SEED}


def _mean_std(mean: float | None, std: float | None) -> str:
    """Returns a mean with its standard deviation.

    >>> _mean_std(0.5, 0.01), _mean_std(0.5, None), _mean_std(None, None)
    ('0.5000 +- 0.0100', '0.5000', '-')
    """
    if mean is None:
        return "-"
    return f"{mean:.4f}" + ("" if std is None else f" +- {std:.4f}")
