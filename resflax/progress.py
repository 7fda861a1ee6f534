"""Progress meter: a bar on a terminal, lines elsewhere, nothing if silent."""

import os
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

from tqdm import tqdm

from resflax.files import replace_undecodable


def _terminal_size(file: TextIO) -> tuple[int, int]:
    """Returns columns and rows of a terminal: 80x24 if it does not report them."""
    try:
        columns, rows = os.get_terminal_size(file.fileno())
    except OSError:
        columns, rows = 0, 0
    return columns or 80, rows or 24


def format_seconds(seconds: float) -> str:
    """Returns minutes and seconds, and hours if there are any.

    >>> format_seconds(75), format_seconds(3675)
    ('01:15', '1:01:15')
    """
    return str(tqdm.format_interval(seconds))


class ProgressMeter:
    """Shows how much of a task is done, the time left and a line of text.

    On a terminal it draws a bar. Elsewhere it prints one line every `interval` seconds.

    Args:
      total: amount of work; None if unknown. A bar shows an int as a count, a float in percent.
      interval: minimum number of seconds between two printed lines.
      delay: number of seconds before the bar first appears.
      show_times: show the time left, estimated from the average speed; else percent only.
      file: output stream, by default stdout.
      silent: print nothing, for processes other than the main one.
    """

    def __init__(
        self,
        total: float | None = None,
        *,
        interval: float = 10.0,
        delay: float = 0.0,
        show_times: bool = True,
        file: TextIO | None = None,
        silent: bool = False,
    ) -> None:
        self.total, self.interval, self.silent = total, interval, silent
        self.show_times = show_times
        self.file = file or sys.stdout
        self.done = self.skipped = 0.0
        self.start = self.last_print = time.monotonic()
        self.bar: Any = None
        if self.file.isatty() and not silent:
            share = "{n_fmt}/{total_fmt}" if isinstance(total, int) else "{percentage:3.0f} %"
            bar = f"{{bar}} {share}, {{remaining}} left" if total else "{elapsed}"
            without_times = "{percentage:3.0f}% {bar} {desc}"
            columns, rows = _terminal_size(self.file)
            self.bar = tqdm(
                total=total,
                file=self.file,
                delay=delay,
                ncols=columns,
                nrows=rows,
                leave=bool(total),
                bar_format=bar + "{postfix}" if show_times else without_times,
            )

    def show(self, text: str) -> None:
        """Shows a text next to the bar, if there is one."""
        if self.bar is not None:
            self._set_text(text)
            self.bar.refresh()

    def _set_text(self, text: str) -> None:
        text = replace_undecodable(text)
        if self.show_times:
            self.bar.set_postfix_str(text, refresh=False)
        else:
            self.bar.set_description_str(text, refresh=False)

    def skip(self, amount: float) -> None:
        """Counts work that an earlier process did, without effect on the estimated speed."""
        self.skipped += amount
        if self.bar is not None:
            # Not `update`, which would count it as very fast work.
            self.bar.initial += amount
            self.bar.n += amount
            self.bar.last_print_n += amount
            self.bar.refresh()

    def update(
        self,
        amount: float,
        text: str,
        *,
        line: str = "",
        force: bool = False,
    ) -> None:
        """Counts finished work and shows a text about it.

        Args:
          amount: work done since the last update.
          text: shown next to the bar, cut to the width of the terminal.
          line: printed where there is no bar; by default `text`.
          force: print the line even if the last one is less than `interval` seconds old.
        """
        self.done += amount
        if self.bar is not None:
            self.bar.ncols, self.bar.nrows = _terminal_size(self.file)
            self._set_text(text)
            self.bar.update(amount)
            if force:
                self.bar.refresh()
        elif force or time.monotonic() - self.last_print >= self.interval:
            self.last_print = time.monotonic()
            self._print_line(line or text)

    def print(self, line: str) -> None:
        """Prints a separate line, above the bar if there is one."""
        line = replace_undecodable(line)
        if self.bar is not None:
            self.bar.write(line, file=self.file)
        elif not self.silent:
            print(line, file=self.file, flush=True)

    def close(self) -> None:
        """Stops drawing."""
        if self.bar is not None:
            self.bar.close()

    def _print_line(self, text: str) -> None:
        text = replace_undecodable(text)
        if self.total:
            text = f"{(self.done + self.skipped) / self.total:4.0%}, {text}"
        if self.total and self.show_times and self.done:
            elapsed = time.monotonic() - self.start
            left = (self.total - self.skipped - self.done) / self.done * elapsed
            text += f", {format_seconds(left)} left"
        self.print(text)


def progress_range(count: int, description: str, *, interval: float = 5.0) -> Iterator[int]:
    """Yields `range(count)`, with a progress meter once it takes longer than `interval` seconds."""
    meter = ProgressMeter(count, interval=interval, delay=interval)
    for i in range(count):
        yield i
        meter.update(1, description)
    meter.close()
