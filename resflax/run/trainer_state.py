"""Host-side trainer state saved with each checkpoint."""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

METRICS = ("loss", "accuracy")


@dataclass
class TrainerState:
    """Everything that a resumed run needs in addition to the arrays, as JSON values.

    Lists "by member" have one entry per member of an ensemble, and one for a single network.

    Attributes:
      records: number of records in `metrics.jsonl`.
      records_sha256: SHA-256 of these records.
      window: "loss" and "accuracy" of each step since the last record, by member; None for a
        skipped update, {} for a member that no longer trains.
      evaluated: step of the last evaluation during training, on the validation split if there is
        one, else on the test split; -1 before the first.
      validation: metrics of the last evaluation of the validation split; {} without one.
      test: metrics of the last evaluation of the test split, which a run with a validation split
        evaluates only at its end.
      eval_sets: metrics of the last evaluation of each of the run's further sets, and their "step".
      tested: step of that evaluation at the end of a run with a validation split; -1 before it.
      best: highest accuracy of the evaluations during training; -1 before the first.
      best_step: step of the first evaluation with that accuracy; -1 before the first.
      dropped: number of skipped updates, by member.
      in_row: number of consecutive skipped updates up to now, by member.
      diverged_at: step at which the member stopped training; 0 if it trains, by member.
      plateau_best: with schedule=plateau, accuracy that is to be improved, by member; -1 at first.
      plateau_bad: evaluations without improvement up to now, by member.
      reduced_at: steps after which the learning rate was reduced, by member.
      seconds: wall time of the run, over all processes that resumed it.
      examples: number of examples trained on.
      train_seconds: time they took, without compilation and evaluation.
      data_wait_seconds: part of that time in which the devices waited for data.
      skipped: examples that could not be read.
      environment: platform, devices and versions, see `resflax.distributed.engines.environment`.
    """

    records: int = 0
    records_sha256: str = hashlib.sha256().hexdigest()
    window: list[list[dict[str, float] | None]] = field(default_factory=list)
    evaluated: int = -1
    validation: dict[str, Any] = field(default_factory=dict)
    test: dict[str, Any] = field(default_factory=dict)
    eval_sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    tested: int = -1
    best: float = -1.0
    best_step: int = -1
    dropped: list[int] = field(default_factory=lambda: [0])
    in_row: list[int] = field(default_factory=lambda: [0])
    diverged_at: list[int] = field(default_factory=lambda: [0])
    plateau_best: list[float] = field(default_factory=lambda: [-1.0])
    plateau_bad: list[int] = field(default_factory=lambda: [0])
    reduced_at: list[list[int]] = field(default_factory=lambda: [[]])
    seconds: float = 0.0
    examples: int = 0
    train_seconds: float = 0.0
    data_wait_seconds: float = 0.0
    skipped: list[str] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON values; `TrainerState(**values)` is the inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def start(cls, members: int) -> "TrainerState":
        """Returns the state before the first step."""
        return cls(
            dropped=[0] * members,
            in_row=[0] * members,
            diverged_at=[0] * members,
            plateau_best=[-1.0] * members,
            plateau_bad=[0] * members,
            reduced_at=[[] for _ in range(members)],
        )

    def reductions(self, step: int) -> tuple[int, ...]:
        """Returns how often the learning rate was reduced before a step, counted from 1."""
        return tuple(sum(s < step for s in steps) for steps in self.reduced_at)

    @property
    def evaluation(self) -> dict[str, Any]:
        """Metrics of the last evaluation during training; {} before the first."""
        return self.validation or self.test

    def metrics_of(self, split: str) -> dict[str, Any]:
        """Returns the metrics of the last evaluation of a split; {} before the first."""
        if split in ("validation", "test"):
            return dict(getattr(self, split))
        return self.eval_sets.get(split, {})

    def set_metrics(self, split: str, metrics: dict[str, Any], step: int) -> None:
        """Sets the metrics of a split that was evaluated after `step` steps."""
        if split in ("validation", "test"):
            setattr(self, split, metrics)
        else:
            self.eval_sets[split] = metrics | {"step": step}

    def add_step(self, metrics: Sequence[dict[str, float]], finite: Sequence[bool]) -> None:
        """Adds the metrics of a step, by member; not finite means that its update was skipped."""
        row: list[dict[str, float] | None] = []
        for k, values in enumerate(metrics):
            if self.diverged_at[k]:
                row.append({})
                continue
            row.append(values if finite[k] else None)
            self.in_row[k] = 0 if finite[k] else self.in_row[k] + 1
            self.dropped[k] += not finite[k]
        self.window.append(row)

    def pop_means(self) -> dict[str, Any]:
        """Returns the means over the window, and starts a new one.

        Returns:
          "loss" and "accuracy", the means over the steps that were not skipped (None if all were);
          "dropped", the number of skipped steps, if there are any; for an ensemble also "members",
          with the lists "loss" and "accuracy", whose means "loss" and "accuracy" are.
        """
        window, self.window = self.window, []
        members = [_means([step[k] for step in window]) for k in range(len(self.dropped))]
        skipped = sum(values is None for step in window for values in step)
        means: dict[str, Any] = _means(members) | ({"dropped": skipped} if skipped else {})
        if len(members) > 1:
            means["members"] = {key: [mean[key] for mean in members] for key in METRICS}
        return means


def _means(rows: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """Returns the mean of each of `METRICS` over the rows that have a value; None without any."""
    values = {key: [row[key] for row in rows if row and row[key] is not None] for key in METRICS}
    return {key: float(np.mean(column)) if column else None for key, column in values.items()}
