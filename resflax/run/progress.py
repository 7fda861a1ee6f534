"""What a run says while it runs: a bar on a terminal, plain lines elsewhere."""

import shutil
import sys
import time
from typing import Any

from tqdm import tqdm


class Progress:
    """Tells how far a run has come: loss, accuracy, examples per second and time left.

    Args:
      steps: of the whole run.
      every: seconds between two plain lines, at least; evaluations are always told.
      silent: say nothing: of several processes one alone does.
    """

    def __init__(self, steps: int, every: float = 10.0, *, silent: bool = False) -> None:
        self.silent = silent
        self.steps = steps
        self.every = every
        self.train_text = self.test_text = ""
        self.told = time.monotonic()
        self.bar = None
        if sys.stdout.isatty() and not silent:
            # A terminal that does not tell its size (0 x 0) is taken for 80 x 24, not for hidden.
            columns, rows = shutil.get_terminal_size()
            self.bar = tqdm(
                total=steps,
                file=sys.stdout,
                ncols=columns,
                nrows=rows,
                bar_format="{bar} {n_fmt}/{total_fmt}, {remaining} left{postfix}",
            )

    def train(self, record: dict[str, Any], left: float) -> None:
        """Shows a training record and the seconds that are left."""
        self.train_text = (
            f"loss {record['loss']:.3f}, accuracy {record['accuracy']:.3f},"
            f" {record['examples_per_second']:,.0f} examples/s"
        )
        if self.bar:
            self.bar.update(record["step"] - self.bar.n)
            self._postfix()
        elif time.monotonic() - self.told >= self.every:
            self._line(record, left)

    def test(self, record: dict[str, Any], left: float) -> None:
        """Shows the record of an evaluation."""
        self.test_text = f", test {record['accuracy']:.4f}"
        if self.bar:
            self._postfix()
        else:
            self._line(record, left)

    def say(self, line: str) -> None:
        """A line of its own."""
        if self.bar:
            self.bar.write(line)
        elif not self.silent:
            print(line, flush=True)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self.bar:
            self.bar.close()

    def _postfix(self) -> None:
        assert self.bar
        # The last cells of a narrow terminal are cut: what matters least stands last.
        self.bar.set_postfix_str(self.train_text.replace("examples", "ex") + self.test_text)

    def _line(self, record: dict[str, Any], left: float) -> None:
        self.told = time.monotonic()
        if self.silent:
            return
        test = self.test_text if record["split"] == "test" else ""
        print(
            f"epoch {record['epoch']:.1f}, step {record['step']}/{self.steps}: "
            f"{self.train_text}{test}, {tqdm.format_interval(left)} left",
            flush=True,
        )
