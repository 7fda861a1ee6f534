"""Progress of a training run: its records as lines for a `ProgressMeter`."""

from typing import Any

import numpy as np

from resflax.progress import ProgressMeter


class RunProgress:
    """Shows the records of a run: loss, accuracy, examples per second and remaining time.

    Args:
      steps: number of steps of the whole run.
      interval: minimum number of seconds between two printed lines; evaluations always print.
      silent: print nothing.
    """

    def __init__(self, steps: int, interval: float = 10.0, *, silent: bool = False) -> None:
        self.meter = ProgressMeter(steps, interval=interval, silent=silent)
        self.steps, self.step = steps, 0
        self.train_text = self.eval_text = ""

    def resume(self, step: int) -> None:
        """Counts the steps that earlier processes took."""
        self.meter.skip(step - self.step)
        self.step = step

    def train(self, record: dict[str, Any], remaining: float) -> None:
        """Shows a training record and the remaining seconds."""
        loss, accuracy = (
            "none" if record[key] is None else f"{record[key]:.3f}" for key in ("loss", "accuracy")
        )
        speed = f"{record['examples_per_second']:,.0f} examples/s"
        self.train_text = f"loss {loss}, accuracy {accuracy}, {speed}"
        self._update(record, "", remaining, force=False)

    def evaluation(self, record: dict[str, Any], remaining: float) -> None:
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

    def _update(
        self, record: dict[str, Any], eval_text: str, remaining: float, *, force: bool
    ) -> None:
        steps, self.step = record["step"] - self.step, record["step"]
        place = f"epoch {record['epoch']:.1f}, step {record['step']}/{self.steps}"
        line = f"{place}: {(self.train_text + eval_text).removeprefix(', ')}"
        # Fits into 80 columns; narrower terminals cut the last part, the evaluation.
        short = self.train_text.replace("examples", "ex") + self.eval_text
        self.meter.update(
            steps, short.removeprefix(", "), line=line, remaining=remaining, force=force
        )
