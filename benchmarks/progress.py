"""What the front says on stderr while it measures."""

import sys
import time


class Progress:
    """One line, drawn over on a terminal; elsewhere a line for each new stage and every 10 s."""

    def __init__(self, every: float = 10.0) -> None:
        self.every, self.told, self.width = every, 0.0, 0
        self.terminal = sys.stderr.isatty()

    def say(self, text: str, *, left: float | None = None, stage: bool = True) -> None:
        """Tells what is running, and about how many seconds are left."""
        if left is not None:
            text += f", about {int(left) // 60}:{int(left) % 60:02d} left"
        if self.terminal:
            print(f"\r{text:<{self.width}}", end="", file=sys.stderr, flush=True)
            self.width = len(text)
        elif stage or time.monotonic() - self.told >= self.every:
            self.told = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Leaves no line behind on a terminal."""
        if self.terminal and self.width:
            print("\r" + " " * self.width, end="\r", file=sys.stderr, flush=True)
            self.width = 0
