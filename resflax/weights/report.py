"""Messages about weights that are read: what was taken, and what was changed."""

import sys
from collections.abc import Callable

Report = Callable[[str], None]


def print_to_stderr(text: str) -> None:
    """Prints a message to stderr."""
    print(text, file=sys.stderr)
