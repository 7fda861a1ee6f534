"""Host-side trainer state saved with each checkpoint."""

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class TrainerState:
    """Everything that a resumed run needs in addition to the arrays, as JSON values.

    Attributes:
      records: number of records in `metrics.jsonl`.
      records_sha256: SHA-256 of these records.
      window: "loss" and "accuracy" of each step since the last record; None for a skipped update.
      evaluated: step of the last evaluation; -1 before the first.
      test: metrics of the last evaluation.
      best: highest test accuracy so far; -1 before the first evaluation.
      dropped: number of skipped updates.
      in_row: number of consecutive skipped updates up to now.
      seconds: wall time of the run, over all processes that resumed it.
      examples: number of examples trained on.
      train_seconds: time they took, without compilation and evaluation.
      skipped: examples that could not be read.
      environment: platform, devices and versions, see `resflax.distributed.engines.environment`.
    """

    records: int = 0
    records_sha256: str = hashlib.sha256().hexdigest()
    window: list[dict[str, float] | None] = field(default_factory=list)
    evaluated: int = -1
    test: dict[str, float] = field(default_factory=dict)
    best: float = -1.0
    dropped: int = 0
    in_row: int = 0
    seconds: float = 0.0
    examples: int = 0
    train_seconds: float = 0.0
    skipped: list[str] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON values; `TrainerState(**values)` is the inverse."""
        return dataclasses.asdict(self)

    def add_step(self, metrics: dict[str, float], finite: bool) -> None:
        """Adds the metrics of a step; not finite means that its update was skipped."""
        self.window.append(metrics if finite else None)
        self.in_row = 0 if finite else self.in_row + 1
        self.dropped += not finite

    def pop_means(self) -> dict[str, Any]:
        """Returns the means over the window, and starts a new one.

        Returns:
          "loss" and "accuracy", the means over the steps that were not skipped (None if all were),
          and "dropped", the number of skipped steps, if there are any.
        """
        applied = [metrics for metrics in self.window if metrics]
        dropped = len(self.window) - len(applied)
        self.window = []
        means: dict[str, Any] = {
            key: float(np.mean([metrics[key] for metrics in applied])) if applied else None
            for key in ("loss", "accuracy")
        }
        return means | ({"dropped": dropped} if dropped else {})
