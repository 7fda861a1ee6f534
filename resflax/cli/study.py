"""`python -m resflax study NAME`: which studies there are, and what they are told."""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from absl import logging

from resflax.errors import Parser
from resflax.runtime import enable_compilation_cache

# Each names a module with a docstring, `add_arguments(parser)` and `run(args)`.
STUDIES = ("degradation", "responses", "shortcuts", "identity", "gradients", "dropping")


def _module(name: str) -> Any:
    return importlib.import_module(f"resflax.study.{name}")


def numbers(kind: type, minimum: float, maximum: float) -> Any:
    """A type of argparse's: a list `A,B` of numbers from `minimum` to `maximum`, none twice."""

    def parse(text: str) -> list[Any]:
        try:
            values = [kind(word) for word in text.split(",")]
        except ValueError:
            values = []
        if (
            not values
            or len({*values}) < len(values)
            or not all(minimum <= v <= maximum for v in values)
        ):
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a list of numbers from {minimum:g} to {maximum:g}, as A,B,C"
            )
        return values

    return parse


def count(maximum: int) -> Any:
    """A type of argparse's: a whole number from 1 to `maximum`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) <= maximum:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {maximum}")
        return int(text)

    return parse


def add_training(parser: Any, *, seeds: int, rates: str) -> None:
    """The options of a study that trains networks."""
    parser.add_argument("--dataset", default="digits", help="of TensorFlow Datasets")
    parser.add_argument("--data_dir", default="", help="where prepared sets lie")
    parser.add_argument("--seeds", type=count(100), default=seeds, metavar="N", help="how many")
    parser.add_argument("--epochs", type=count(10**6), help="default: the dataset's recipe")
    parser.add_argument("--batch_size", type=count(10**6), help="default: the dataset's recipe")
    parser.add_argument(
        "--learning_rates",
        type=numbers(float, 1e-6, 1e3),
        default=rates,
        metavar="A,B",
        help="every network is shown at its best one",
    )


def main(arguments: list[str]) -> None:
    """Runs the study that the arguments name.

    Raises:
      UserError: on anything that cannot be understood.
    """
    parser = Parser(prog="python -m resflax study", description=__doc__)
    studies = parser.add_subparsers(dest="study", required=True, parser_class=Parser)
    for name in STUDIES:
        doc = _module(name).__doc__ or ""
        sub = studies.add_parser(
            name,
            help=doc.splitlines()[0],
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument("--out", type=Path, default=Path(f"runs/{name}"), help="its folder")
        _module(name).add_arguments(sub)
    args = parser.parse_args(arguments)
    logging.set_verbosity(logging.ERROR)
    enable_compilation_cache()
    try:
        _module(args.study).run(args)
    except KeyboardInterrupt:
        print(f"\nstopped: the same command goes on from what {args.out} holds", file=sys.stderr)
        sys.exit(130)
