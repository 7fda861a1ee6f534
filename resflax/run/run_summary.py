"""What the files of a run say of it, also before it has finished."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resflax.errors import UserError
from resflax.files import user_path
from resflax.run.config_diff import flatten_config

Record = dict[str, Any]


class RunSummary(NamedTuple):
    """The config, the records and, of a finished run, the results of a workdir.

    Attributes:
      path: as it was given.
      config: JSON values by their dotted keys.
      records: readable records of `metrics.jsonl`.
      results: values of `results.json`; {} for a run that has not finished.
    """

    path: Path
    config: dict[str, Any]
    records: list[Record]
    results: dict[str, Any]

    @property
    def state(self) -> str:
        """The word "finished", or the epoch that the run has reached."""
        if self.results:
            return "finished"
        epoch = self.records[-1]["epoch"] if self.records else 0
        return f"unfinished, epoch {epoch:.4g} of {self.config.get('epochs', '?')}"

    @property
    def best_by(self) -> str:
        """The split that is evaluated during training."""
        splits = {record["split"] for record in self.records}
        return "validation" if "validation" in splits else "test"

    def last(self, split: str, key: str) -> Any:
        """Returns a value of the last record of a split; None without one."""
        values = [record.get(key) for record in self.records if record["split"] == split]
        return values[-1] if values else None

    def figures(self) -> dict[str, Any]:
        """Returns the figures of the run, JSON values; None for what is not known yet."""
        evaluations = [r for r in self.records if r["split"] == self.best_by]
        best = max(evaluations, key=lambda record: record["accuracy"], default={})
        speed = self.results.get("examples_per_second", self.last("train", "examples_per_second"))
        return {
            "state": self.state,
            "model": self.config.get("model") or self.config.get("pretrained"),
            "dataset": self.config.get("dataset"),
            "validation_accuracy": self.last("validation", "accuracy"),
            "test_accuracy": self.last("test", "accuracy"),
            "test_loss": self.last("test", "loss"),
            "best_by": self.best_by,
            "best_accuracy": best.get("accuracy"),
            "best_step": best.get("step"),
            "steps": self.records[-1]["step"] if self.records else 0,
            "parameters": self.results.get("parameters"),
            "wall_seconds": self.results.get("wall_seconds"),
            "examples_per_second": speed,
        }


def read_run(given: str | Path) -> RunSummary:
    """Reads a workdir, also that of a run in progress, without changing anything.

    Raises:
      UserError: if the path is not the workdir of a run, or its config cannot be read.
    """
    path = user_path(given)
    if not (path / "config.json").is_file() or not _is_workdir(path):
        raise UserError(
            f"{path} is not the workdir of a run, which has config.json and metrics.jsonl"
        )
    try:
        config = flatten_config(json.loads((path / "config.json").read_text()))
    except (ValueError, AttributeError) as e:
        raise UserError(f"{path} has a corrupt config.json: {e}") from e
    results = _read_json(path / "results.json")
    return RunSummary(path, config, _read_records(path / "metrics.jsonl"), results)


def differing_keys(runs: Sequence[RunSummary]) -> dict[str, list[Any]]:
    """Returns the values of each run for the keys in which their configs differ; None for none."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    values = {key: [run.config.get(key) for run in runs] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def _is_workdir(path: Path) -> bool:
    return any((path / name).exists() for name in ("metrics.jsonl", "checkpoints"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _read_records(path: Path) -> list[Record]:
    """Reads the records; the last line of a running run can be incomplete."""
    records: list[Record] = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and _is_complete(record):
            records.append(record)
    return records


def _is_complete(record: Record) -> bool:
    keys = ["step", "epoch", "loss", "accuracy"]
    if record.get("split") == "train":  # without loss and accuracy if all updates were skipped
        keys = [key for key in keys if record.get(key, 0) is not None]
    return isinstance(record.get("split"), str) and all(
        isinstance(record.get(key), int | float) and not isinstance(record[key], bool)
        for key in keys
    )
