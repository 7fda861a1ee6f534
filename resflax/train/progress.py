"""What a run says while it runs: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Any

from tqdm import tqdm


def _text(record: dict[str, Any]) -> str:
    return f"loss {record['loss']:.4f}, accuracy {record['accuracy']:.4f}"


class Progress:
    """Tells how far a run has come: loss, accuracy, examples per second and time left.

    Args:
      steps: of the whole run.
      every: seconds between two plain lines, at least; evaluations are always told.
    """

    def __init__(self, steps: int, every: float = 10.0) -> None:
        self.steps = steps
        self.every = every
        self.train_text = self.test_text = ""
        self.told = time.monotonic()
        self.bar = None
        if sys.stdout.isatty():
            self.bar = tqdm(total=steps, unit="step", file=sys.stdout, dynamic_ncols=True)

    def train(self, record: dict[str, Any], left: float) -> None:
        """Shows a training record and the seconds that are left."""
        self.train_text = f"{_text(record)}, {record['examples_per_second']:,.0f} examples/s"
        if self.bar:
            self.bar.update(record["step"] - self.bar.n)
            self.bar.set_postfix_str(self.train_text + self.test_text)
        elif time.monotonic() - self.told >= self.every:
            self._line(record, left)

    def test(self, record: dict[str, Any], left: float) -> None:
        """Shows the record of an evaluation."""
        self.test_text = f", test {record['accuracy']:.4f}"
        if self.bar:
            self.bar.set_postfix_str(self.train_text + self.test_text)
        else:
            self._line(record, left)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self.bar:
            self.bar.close()

    def _line(self, record: dict[str, Any], left: float) -> None:
        self.told = time.monotonic()
        test = self.test_text if record["split"] == "test" else ""
        print(
            f"epoch {record['epoch']:.1f}, step {record['step']}/{self.steps}: "
            f"{self.train_text}{test}, {tqdm.format_interval(left)} left",
            flush=True,
        )
