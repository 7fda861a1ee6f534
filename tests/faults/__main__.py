"""Fault injection into real runs of `train.py`: `python tests/faults kill --runs=20`.

Each campaign prints a report, and exits with status 1 if a run did not end as expected.
docs/reliability.md has the results.
"""

import argparse
import importlib
import signal
import sys
from types import FrameType
from typing import NamedTuple

from sessions import SESSIONS


class Campaign(NamedTuple):
    """A row of `CAMPAIGNS`: description, name of its number (if there is one) and the default."""

    description: str
    number: str = ""
    default: int = 0


CAMPAIGNS = {
    "kill": Campaign("kill runs by SIGKILL at random moments", "runs", 100),
    "stop": Campaign("stop runs by SIGTERM and SIGINT at random moments", "runs", 10),
    "flip": Campaign("damage each file of each checkpoint of a run", "flips", 100),
    "disk": Campaign("fill the disk, or make it read-only (needs the right to mount)"),
    "lost": Campaign("kill or stop one of two processes of a run", "runs", 4),
    "devices": Campaign("train with other engines and numbers of devices and processes"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("tests/faults", description=__doc__)
    commands = parser.add_subparsers(dest="campaign", metavar="CAMPAIGN")
    for name, (description, number, default) in CAMPAIGNS.items():
        command = commands.add_parser(name, help=description, description=description)
        if number:
            text = f"number of {number}, by default {default}"
            command.add_argument(f"--{number}", type=int, default=default, metavar="N", help=text)
    return parser


def _end(number: int, frame: FrameType | None) -> None:
    SESSIONS.exit(128 + number)


def main(arguments: list[str]) -> int:
    """Runs a campaign and returns its exit status."""
    parser = _parser()
    values = vars(parser.parse_args(arguments))
    name = values.pop("campaign")
    if name is None:
        parser.print_help()
        return 2
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    passed: bool = importlib.import_module(name).main(**values)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
