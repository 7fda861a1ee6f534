"""Command-line types and options that several studies share."""

import argparse
from collections.abc import Callable
from typing import Any

from resflax.data import Dataset, load_dataset
from resflax.errors import UserError


def number_list(kind: type, minimum: float, maximum: float) -> Callable[[str], list[Any]]:
    """Returns an argparse type: distinct numbers from `minimum` to `maximum`, written "A,B,C".

    >>> number_list(int, 1, 100)("20,56")
    [20, 56]
    """

    def parse(text: str) -> list[Any]:
        try:
            values = [kind(word) for word in text.split(",")]
        except ValueError:
            values = []
        distinct = len({*values}) == len(values)
        if not values or not distinct or not all(minimum <= v <= maximum for v in values):
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a list A,B,C of distinct numbers from {minimum:g} to {maximum:g}"
            )
        return values

    return parse


def positive_int(maximum: int) -> Callable[[str], int]:
    """Returns an argparse type: an integer from 1 to `maximum`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) <= maximum:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 1 to {maximum}")
        return int(text)

    return parse


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that select the dataset."""
    parser.add_argument(
        "--dataset", default="digits", help="digits, folder:PATH, or a TFDS name; default: digits"
    )
    parser.add_argument(
        "--data_dir", default="", help="directory of prepared datasets; default: that of TFDS"
    )


def open_dataset(args: argparse.Namespace) -> Dataset:
    """Opens the dataset of the options that `add_data_arguments` adds.

    Raises:
      UserError: if it cannot be opened, or does not have images.
    """
    dataset = load_dataset(args.dataset, args.data_dir)
    if len(dataset.image_shape) != 3:
        raise UserError(
            f"{dataset.name!r} has arrays of shape {dataset.image_shape}: expected images (height,"
            " width, channels), which the networks of a study take"
        )
    return dataset


def add_seeds_argument(parser: argparse.ArgumentParser, seeds: int) -> None:
    """Adds `--seeds`, the number of random seeds."""
    parser.add_argument(
        "--seeds",
        type=positive_int(100),
        default=seeds,
        metavar="N",
        help=f"number of seeds; default: {seeds}",
    )


def add_training_arguments(parser: argparse.ArgumentParser, *, seeds: int, rates: str) -> None:
    """Adds the options of a study that trains networks.

    Args:
      parser: parser of the study's options.
      seeds: default number of seeds.
      rates: default learning rates, written "A,B".
    """
    add_data_arguments(parser)
    add_seeds_argument(parser, seeds)
    for option in ("--epochs", "--batch_size"):
        parser.add_argument(
            option, type=positive_int(10**6), help="default: from the dataset's recipe"
        )
    parser.add_argument(
        "--learning_rates",
        type=number_list(float, 1e-6, 1e3),
        default=rates,
        metavar="A,B",
        help=f"learning rates; each network is shown at its best one; default: {rates}",
    )
