"""Progress of a training run: its records as lines for a `ProgressMeter`."""

import math
import time
from typing import Any

import numpy as np

from resflax.progress import ProgressMeter, format_seconds


class RunProgress:
    """Shows the records of a run: epoch, percent, elapsed and remaining time, loss, accuracy.

    On a terminal it draws a bar; elsewhere it prints one line per epoch and evaluation, and others
    during long epochs.

    Args:
      steps: number of steps of the whole run.
      epochs: number of epochs of the whole run; 0 if unknown.
      interval: number of seconds after which a line is printed within an epoch.
      silent: print nothing.
    """

    def __init__(
        self, steps: int, epochs: float = 0, *, interval: float = 60.0, silent: bool = False
    ) -> None:
        self.meter = ProgressMeter(steps, interval=interval, show_times=False, silent=silent)
        self.steps, self.epochs, self.start = steps, epochs, time.monotonic()
        self.step, self.epoch, self.printed_epoch = 0, 0.0, 0
        self.remaining: float | None = None
        self.loss = self.train_text = self.eval_text = ""

    def resume(self, step: int) -> None:
        """Counts the steps that earlier processes took."""
        self.meter.skip(step - self.step)
        self.step = step
        self.epoch = self.epochs * step / max(self.steps, 1)
        self.printed_epoch = math.floor(self.epoch)

    def show(self, activity: str) -> None:
        """Shows next to the bar what the run does until the next record, such as "compiling"."""
        self.meter.show(f"{self._place()}, {activity}")

    def train(
        self, record: dict[str, Any], remaining: float | None, *, evaluates: bool = False
    ) -> None:
        """Shows a training record.

        Args:
          record: see `make_record`.
          remaining: number of seconds left; None if unknown.
          evaluates: whether an evaluation follows at the same step, which shows both.
        """
        loss, accuracy = (
            "none" if record[key] is None else f"{record[key]:.3f}" for key in ("loss", "accuracy")
        )
        self.loss = f", loss {loss}"
        speed = f"{record['examples_per_second']:,.0f} examples/s"
        self.train_text = f"loss {loss}, accuracy {accuracy}, {speed}"
        if not evaluates:
            self._update(record, "", remaining, force=record["epoch"] >= self.printed_epoch + 1)

    def evaluation(self, record: dict[str, Any], remaining: float | None) -> None:
        """Shows the record of an evaluation; of an ensemble, also its members' mean accuracy.

        The mean is that of the members with a finite loss.
        """
        self.eval_text = f", {record['split']} {record['accuracy']:.4f}"
        if "members" in record:
            members = zip(record["members"]["accuracy"], record["members"]["loss"], strict=True)
            accuracies = [accuracy for accuracy, loss in members if loss is not None]
            if accuracies:
                self.eval_text += f" (members {np.mean(accuracies):.4f})"
        self._update(record, self.eval_text, remaining, force=True)

    def print(self, line: str) -> None:
        """Prints a separate line."""
        self.meter.print(line)

    def close(self) -> None:
        """Stops drawing."""
        self.meter.close()

    def _place(self, step: str = "") -> str:
        """Returns the epoch, `step` if it is given, and the elapsed and the remaining time."""
        epochs = f"/{self.epochs:g}" if self.epochs else ""
        elapsed = format_seconds(time.monotonic() - self.start)
        left = "" if self.remaining is None else f", {format_seconds(self.remaining)} left"
        epoch = min(self.epoch, self.epochs or self.epoch)  # the last batch can begin another one
        return f"epoch {epoch:.1f}{epochs}{step}, {elapsed} elapsed{left}"

    def _update(
        self, record: dict[str, Any], eval_text: str, remaining: float | None, *, force: bool
    ) -> None:
        steps, self.step = record["step"] - self.step, record["step"]
        self.epoch, self.remaining = record["epoch"], remaining
        if force:
            self.printed_epoch = math.floor(self.epoch)
        texts = (self.train_text + eval_text).removeprefix(", ")
        line = f"{self._place(f', step {self.step}/{self.steps}')}: {texts}"
        # Fits into 80 columns; narrower terminals cut the last part, the evaluation.
        short = self._place() + self.loss + self.eval_text.replace("validation", "val")
        self.meter.update(steps, short, line=line, force=force)
