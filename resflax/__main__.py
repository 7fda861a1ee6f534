"""The command line: `python -m resflax study ...`."""

import importlib
import sys

from resflax.errors import unknown
from resflax.train.cli import report

# Each names a module with `main(arguments)`.
ROOMS = {"study": "resflax.study.cli"}


def main() -> None:
    """Hands the arguments to the room that the first of them names."""
    room, *arguments = sys.argv[1:] or ["--help"]
    if room in ("-h", "--help"):
        print(f"usage: python -m resflax {{{','.join(ROOMS)}}} ...")
        return
    if room not in ROOMS:
        raise unknown("command", room, ROOMS)
    importlib.import_module(ROOMS[room]).main(arguments)


if __name__ == "__main__":
    sys.exit(report(main))
