"""Where a run is, besides its state: what it has told, and what it has yet to tell."""

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from resflax.distributed.engines import Engine


@dataclass
class TrainerState:
    """All plain values: it is kept as JSON beside the state.

    Attributes:
      records: lines of `metrics.jsonl`, and their SHA-256, when this was saved.
      window: of each step since the last record "loss" and "accuracy", None if it was dropped.
      evaluated: the step that was last evaluated.
      test: what the evaluation found.
      best: the largest accuracy so far; -1 before the first.
      dropped: steps whose update was dropped; `in_row` those at the end.
      seconds: that the run has taken, all starts together.
      examples: that were trained on, and `training` the seconds that took.
      skipped: the examples that were left out so far.
      where: what the bits depend on, see `environment`.
    """

    records: int = 0
    records_sha256: str = hashlib.sha256().hexdigest()
    window: list[dict[str, float] | None] = field(default_factory=list)
    evaluated: int = 0
    test: dict[str, float] = field(default_factory=dict)
    best: float = -1.0
    dropped: int = 0
    in_row: int = 0
    seconds: float = 0.0
    examples: int = 0
    training: float = 0.0
    skipped: list[str] = field(default_factory=list)
    where: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(values: dict[str, Any]) -> "TrainerState":
        """From what `dataclasses.asdict` made."""
        return TrainerState(**values)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)

    def took(self, values: dict[str, float], good: bool) -> None:
        """Counts a step in."""
        self.window.append(values if good else None)
        self.in_row = 0 if good else self.in_row + 1
        self.dropped += not good

    def means(self) -> dict[str, Any]:
        """Over the window, which ends: its mean loss and accuracy, and the steps dropped, if any.

        The means are over the steps that were not dropped, None if all were.
        """
        taken = [values for values in self.window if values]
        lost = len(self.window) - len(taken)
        self.window = []
        means: dict[str, Any] = {
            key: float(np.mean([values[key] for values in taken])) if taken else None
            for key in ("loss", "accuracy")
        }
        return means | ({"dropped": lost} if lost else {})


def environment(engine: Engine, name: str) -> dict[str, Any]:
    """What the bits of a run depend on: platform, devices, processes, engine, version."""
    return {
        "platform": engine.devices[0].platform,
        "devices": len(engine.devices),
        "processes": jax.process_count(),
        "engine": name,
        "jax": jax.__version__,
    }
