"""What a study says while it runs."""

import sys
import time

from tqdm import tqdm


class Told:
    """How far a study is and how long it will take: a bar on a terminal, lines elsewhere.

    Args:
      total: work of the whole study, in any unit.
      every: seconds between two plain lines, at least.
    """

    def __init__(self, total: float, every: float = 10.0) -> None:
        self.total, self.every = total, every
        self.done = self.skipped = 0.0
        self.began = self.last = time.monotonic()
        self.bar = None
        if sys.stdout.isatty():
            form = "{bar} {percentage:3.0f} %, {remaining} left{postfix}"
            self.bar = tqdm(total=total, file=sys.stdout, bar_format=form)

    def skip(self, work: float) -> None:
        """Counts work that an earlier start has done."""
        self.skipped += work
        if self.bar is not None:
            # Not `update`: that would take it for very fast work, and the rest for as fast.
            self.bar.initial += work
            self.bar.n += work
            self.bar.last_print_n += work
            self.bar.refresh()

    def work(self, work: float, text: str) -> None:
        """Counts work that was done now, and says what it was."""
        self.done += work
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(work)
            return
        now = time.monotonic()
        if now - self.last >= self.every:
            self.last = now
            left = (self.total - self.skipped - self.done) / self.done * (now - self.began)
            share = (self.done + self.skipped) / self.total
            print(f"{share:4.0%}, {tqdm.format_interval(left)} left: {text}", flush=True)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self.bar is not None:
            self.bar.close()
