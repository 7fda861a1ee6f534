"""Flags of `resflax predict`."""

import argparse
import os
from collections.abc import Sequence

from resflax.cli.arguments import check_minimum, check_output
from resflax.cli.output_files import FEATURE_FORMATS, PREDICTION_FORMATS
from resflax.data.source import ON_BAD_EXAMPLE
from resflax.errors import Parser, UserError
from resflax.files import path_type, where_type

MAX_THREADS = 1024


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses a command line and checks what needs neither the weights nor the images.

    Raises:
      UserError: if it is invalid.
    """
    parser = Parser(
        prog="resflax predict",
        description="Predicts the classes of images or arrays: prints a table, or writes a file"
        " with --out. --features writes the features before the head. An ensemble averages the"
        " probabilities of its members, and says how far they differ.",
    )
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="+",
        help="image files, or .npy files of a network of arrays; folders, searched with their"
        " subfolders; quoted globs, in which ** stands for any number of folders",
    )
    _add_network(parser)
    _add_outputs(parser)
    _add_reading(parser)
    args = parser.parse_intermixed_args(list(arguments))
    _check(args)
    return args


def _add_network(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--weights",
        metavar="WHERE",
        required=True,
        action="append",
        type=where_type,
        help="a workdir, a folder or file of weights, a Hub owner/name, or a name such as"
        " resnet50.a1_in1k; an ensemble: its workdir (runs/x, runs/x#0,2), or the option repeated",
    )
    add("--model", metavar="NAME", help="model name; default: the one saved with the weights")
    add("--revision", help="branch, tag or commit of a Hub repository")
    text = "text file with one class name per line"
    add("--labels", metavar="FILE", type=path_type, help=text)


def _add_outputs(parser: Parser) -> None:
    add = parser.add_argument
    text = "classes per image; default: 5; a table of more than 10 images has one row each"
    add("--top", metavar="K", type=int, default=5, help=text)
    text = f"predictions: {', '.join(PREDICTION_FORMATS)}"
    add("--out", metavar="FILE", type=path_type, help=text)
    text = f"features: {', '.join(FEATURE_FORMATS)}"
    add("--features", metavar="FILE", type=path_type, help=text)
    add("--sheet", metavar="FILE", type=path_type, help="contact sheet: .png")


def _add_reading(parser: Parser) -> None:
    add = parser.add_argument
    add("--batch-size", metavar="N", type=int, default=32, help="images per batch; default: 32")
    threads = os.cpu_count() or 1
    text = "threads that decode images; default: the number of CPU cores"
    add("--num-workers", metavar="N", type=int, default=threads, help=text)
    text = "stop at an unreadable image (default), or skip and list it"
    add("--on-bad-example", choices=ON_BAD_EXAMPLE, default=ON_BAD_EXAMPLE[0], help=text)


def _check(args: argparse.Namespace) -> None:
    check_minimum(args, top=1, batch_size=1, num_workers=1)
    if args.num_workers > MAX_THREADS:
        raise UserError(f"--num-workers is {args.num_workers}: expected 1 to {MAX_THREADS}")
    check_output("--out", args.out, PREDICTION_FORMATS)
    check_output("--features", args.features, FEATURE_FORMATS)
    check_output("--sheet", args.sheet, (".png",))
