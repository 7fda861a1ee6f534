"""The records of a run: written to `metrics.jsonl`, shown as progress, drawn as curves."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from resflax.run.curves import draw_curves
from resflax.run.progress import RunProgress
from resflax.run.throughput import Throughput
from resflax.run.trainer_state import TrainerState
from resflax.run.workdir import Workdir
from resflax.train.results import describe_accuracies, make_record, member_labels
from resflax.train.trainer import Trainer


class Recorder:
    """Writes and shows the records of a run.

    Args:
      trainer: the trainer of the run.
      workdir: its directory.
      progress: shows the records.
      state: host-side state from which the run starts or resumes.

    Attributes:
      throughput: speed of training; the caller counts each step in it.
    """

    def __init__(
        self, trainer: Trainer, workdir: Workdir, progress: RunProgress, state: TrainerState
    ) -> None:
        self._trainer, self._workdir, self._progress = trainer, workdir, progress
        self.throughput = Throughput(trainer.steps, state.examples, state.train_seconds)

    def add_training(
        self, step: int, means: dict[str, Any], rates: Sequence[float], *, evaluates: bool
    ) -> None:
        """Adds the record of the steps since the last one.

        Args:
          step: number of steps taken.
          means: see `TrainerState.pop_means`.
          rates: learning rate of each member.
          evaluates: whether an evaluation follows at the same step.
        """
        record = self._make_record(step, "train", means, rates, self.throughput.lap())
        self._workdir.add_record(record)
        self._progress.train(record, self._remaining(step), evaluates=evaluates)

    def add_evaluation(
        self, step: int, split: str, metrics: dict[str, Any], rates: Sequence[float]
    ) -> None:
        """Adds the record of an evaluation that has just ended.

        Args:
          step: number of steps taken.
          split: "validation" or "test".
          metrics: see `TestMetrics`.
          rates: learning rate of each member.
        """
        count = int(metrics["count"])
        speed = count / self.throughput.pause(count * self._trainer.run.size)
        record = self._make_record(step, split, metrics, rates, speed)
        self._workdir.add_record(record)
        self._progress.evaluation(record, self._remaining(step))

    def draw_curves(self, state: TrainerState) -> None:
        """Draws `curves.png` from all records of the run."""
        splits = {"validation": state.validation, "test": state.test}
        accuracies = {split: metrics.get("accuracy") for split, metrics in splits.items()}
        title = f"{self._trainer.title}, {describe_accuracies(accuracies)}"
        path, labels = self._workdir.path / "curves.png", member_labels(self._trainer.config)
        with self._workdir.disk_errors(path.name):
            draw_curves(self._workdir.records.all(), path, title, labels)

    def _make_record(
        self, step: int, split: str, values: Any, rates: Sequence[float], speed: float
    ) -> dict[str, Any]:
        epoch, rate = self._trainer.epoch(step), float(np.mean(rates))
        return make_record(self._trainer.config, step, epoch, split, values, rate, speed)

    def _remaining(self, step: int) -> float | None:
        return self.throughput.remaining(step, self._trainer.evaluations_after(step))
