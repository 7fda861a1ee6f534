"""The records of a run: written to `metrics.jsonl` and by writers, shown as progress, drawn."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from resflax.data import StreamingSplit
from resflax.run.config_diff import flatten_config
from resflax.run.curves import draw_curves
from resflax.run.memory import memory_use
from resflax.run.metric_writer import (
    MetricWriter,
    WriterStart,
    open_writers,
    parse_writers,
    scalars_of,
)
from resflax.run.progress import RunProgress
from resflax.run.throughput import RareTask, Throughput
from resflax.run.trainer_state import TrainerState
from resflax.run.workdir import Workdir
from resflax.train.config import to_json_dict
from resflax.train.data_wait import WaitMeter, describe_wait
from resflax.train.first_batch import first_images
from resflax.train.histograms import HistogramSource
from resflax.train.results import describe_accuracies, make_record, member_labels
from resflax.train.state import TrainState
from resflax.train.trainer import Trainer

MAX_IMAGES = 16  # of the first batch, that writers get
# Estimated time to draw the curves, and largest share of a run's time for drawing them meanwhile.
CURVES_SECONDS, MAX_CURVES_SHARE = 1.0, 0.01
# Share of the training time waited for data, and training time in seconds, from which a run warns.
MAX_DATA_WAIT, MIN_SECONDS = 0.1, 10.0


class Recorder:
    """Writes and shows the records of a run.

    Args:
      trainer: the trainer of the run.
      workdir: its directory.
      progress: shows the records.
      state: host-side state from which the run starts or resumes.
      first_step: first step of which there will be records; 0 for a new run.

    Attributes:
      throughput: speed of training; the caller counts each step in it.
    """

    def __init__(
        self,
        trainer: Trainer,
        workdir: Workdir,
        progress: RunProgress,
        state: TrainerState,
        first_step: int,
    ) -> None:
        self._trainer, self._workdir, self._progress = trainer, workdir, progress
        self._state, self._has_warned = state, False
        self._curves_timer = RareTask(CURVES_SECONDS, MAX_CURVES_SHARE)
        self._wait = WaitMeter(trainer.data_wait, state)
        self.throughput = Throughput(trainer.steps, state.examples, state.train_seconds)
        self._histograms = HistogramSource(trainer.run)
        self._writers: list[MetricWriter] = []
        names = parse_writers(trainer.config.log_to)
        if workdir.writes and names:
            with workdir.disk_errors():
                records = workdir.records.all()
                self._writers = open_writers(names, WriterStart(workdir.path, first_step, records))
                if not first_step:
                    self._write_start()

    def _write_start(self) -> None:
        """Writes the config and images of the first batch."""
        config = self._trainer.config
        with jax.transfer_guard("allow"):
            images = first_images(config, self._trainer.dataset, MAX_IMAGES)
        for writer in self._writers:
            writer.write_hyperparameters(flatten_config(to_json_dict(config)))
            if images is not None:
                writer.write_images(0, "train/first_batch", images)

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
        speed = self.throughput.lap()
        resources = {**memory_use(), "data_wait": self._wait.lap(self.throughput.seconds)}
        record = self._make_record(step, "train", means, rates, speed, resources)
        self._write(record)
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
        self._write(record)
        self._progress.evaluation(record, self._remaining(step))
        self._warn_of_waiting()
        if self._workdir.writes and self._curves_timer.is_due():
            with self._curves_timer:
                self.draw_curves(self._state)
            self.throughput.exclude()

    def add_histograms(self, state: TrainState, step: int) -> None:
        """Adds histograms of parameters and gradients if the config has them at this step.

        Args:
          state: on the engine's devices.
          step: number of steps taken.
        """
        every = self._trainer.config.log_histograms_every_steps
        if not every or step % every:
            return
        arrays = self._histograms(state, step)
        with self._workdir.disk_errors():
            for writer in self._writers:
                writer.write_histograms(step, arrays)

    def add_evaluation_table(self) -> None:
        """Adds one table of all evaluations of the run."""
        if not self._writers:
            return
        rows = [r for r in self._workdir.records.all() if r["split"] != "train"]
        table = [{"step": r["step"], "split": r["split"], **scalars_of(r)} for r in rows]
        columns = dict.fromkeys(key for row in table for key in row)
        table = [{key: row.get(key) for key in columns} for row in table]
        with self._workdir.disk_errors():
            for writer in self._writers:
                writer.write_table(self._trainer.steps, "evaluations", table)

    def close(self) -> None:
        """Closes the writers."""
        with self._workdir.disk_errors():
            for writer in self._writers:
                writer.close()

    def _write(self, record: dict[str, Any]) -> None:
        self._workdir.add_record(record)
        with self._workdir.disk_errors():
            for writer in self._writers:
                writer.write_scalars(record["step"], record["split"], scalars_of(record))

    def draw_curves(self, state: TrainerState) -> None:
        """Draws `curves.png` from all records of the run."""
        splits = {"validation": state.validation, "test": state.test}
        accuracies = {split: metrics.get("accuracy") for split, metrics in splits.items()}
        title = f"{self._trainer.title}, {describe_accuracies(accuracies)}"
        path, labels = self._workdir.path / "curves.png", member_labels(self._trainer.config)
        with self._workdir.disk_errors(path.name):
            draw_curves(self._workdir.records.all(), path, title, labels)

    @property
    def data_wait_seconds(self) -> float:
        """Time in which the devices waited for data, in the whole run."""
        return self._wait.seconds

    @property
    def data_wait(self) -> float:
        """The share of this time in the training time."""
        return self._wait.share(self.throughput.seconds)

    def _warn_of_waiting(self) -> None:
        """Prints a warning, once, if the devices wait for data."""
        share, trainer = self.data_wait, self._trainer
        measured = self.throughput.seconds >= MIN_SECONDS and self._workdir.writes
        if measured and share > MAX_DATA_WAIT and not self._has_warned:
            self._has_warned = True
            is_streamed = isinstance(trainer.dataset.train, StreamingSplit)
            text = describe_wait(share, trainer.config, is_streamed=is_streamed)
            self._progress.print(f"warning: {text}")

    def _make_record(
        self,
        step: int,
        split: str,
        values: Any,
        rates: Sequence[float],
        speed: float,
        resources: Mapping[str, float] = MappingProxyType({}),
    ) -> dict[str, Any]:
        epoch, rate = self._trainer.epoch(step), float(np.mean(rates))
        return make_record(self._trainer.config, step, epoch, split, values, rate, speed, resources)

    def _remaining(self, step: int) -> float | None:
        return self.throughput.remaining(step, self._trainer.evaluations_after(step))
