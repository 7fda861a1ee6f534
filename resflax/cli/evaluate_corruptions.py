"""The corruptions of `resflax evaluate`: flags, plan and evaluation."""

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from resflax.data.corruptions import CORRUPTIONS, SEVERITIES
from resflax.errors import Parser, UserError, unknown
from resflax.evaluate.corruption_report import CorruptionReference, read_corruption_reference
from resflax.evaluate.corruptions import Condition
from resflax.files import path_type

ALL = "all"
# Of names of `--ood` that mean corrupted images of the split itself.
CORRUPTED_PREFIX = "corrupted:"


class CorruptionPlan(NamedTuple):
    """The corruptions to evaluate.

    Attributes:
      conditions: corruptions and severities; empty for none.
      seed: of the random corruptions.
      reference: another network to compare with; None without.
    """

    conditions: tuple[Condition, ...] = ()
    seed: int = 0
    reference: CorruptionReference | None = None


def add_flags(parser: Parser) -> None:
    """Adds the options to the parser of `resflax evaluate`."""
    group = parser.add_argument_group("corruptions, see docs/evaluation.md")
    add = group.add_argument
    add(
        "--corruptions",
        nargs="?",
        const=ALL,
        default="",
        metavar="NAME,NAME,...",
        help=f"also evaluate corrupted images; default: all of {', '.join(CORRUPTIONS)}",
    )
    text = "severities of the corruptions; default: 1,2,3,4,5"
    add("--severities", default="", metavar="N,N,...", help=text)
    add("--corruption-seed", type=int, default=0, help="seed of the corruptions; default: 0")
    add(
        "--corruption-reference",
        type=path_type,
        metavar="FILE",
        help="evaluation.json of a network whose errors are the unit of the mean corruption error",
    )


def check_order(words: Sequence[str]) -> None:
    """Raises `UserError` if the word after `--corruptions`, its value, is meant as WHERE."""
    for option, value in pairwise(words):
        is_where = set(value) & set("/@#.") or Path(value).exists()
        if option == "--corruptions" and not value.startswith("-") and is_where:
            raise UserError(
                f"--corruptions takes {value!r} for the names of corruptions: put WHERE first, or"
                " write --corruptions=NAMES"
            )


def check_flags(args: argparse.Namespace) -> None:
    """Checks and splits the options.

    Raises:
      UserError: if one is invalid.
    """
    for name in ("severities", "corruption_reference", "corruption_seed"):
        if getattr(args, name) and not args.corruptions:
            option = name.replace("_", "-")
            raise UserError(f"--{option} is given without --corruptions: expected both")
    names = args.corruptions.split(",") if args.corruptions not in ("", ALL) else ()
    for name in names:
        if name not in CORRUPTIONS:
            raise unknown("corruption", name, CORRUPTIONS)
    severities = args.severities.split(",") if args.severities else tuple(map(str, SEVERITIES))
    if not set(severities) <= set(map(str, SEVERITIES)) or len(set(severities)) < len(severities):
        raise UserError(
            f"--severities is {args.severities!r}: expected different numbers from 1 to 5,"
            " separated by commas"
        )
    if args.corruptions and (args.crops != 1 or args.scales):
        raise UserError(
            "--corruptions needs images of the network's input size: expected no --crops=10 and no"
            " --scales with it"
        )
    args.severities = tuple(sorted(map(int, severities)))


def plan_corruptions(args: argparse.Namespace, channels: int) -> CorruptionPlan:
    """Returns what to evaluate for a network with a number of image channels.

    Raises:
      UserError: if a corruption needs color and there is none, or the reference does not fit.
    """
    if not args.corruptions:
        return CorruptionPlan()
    if args.corruptions == ALL:
        names = [n for n, row in CORRUPTIONS.items() if channels == 3 or not row.needs_color]
    else:
        names = list(dict.fromkeys(args.corruptions.split(",")))
    _check_color(names, channels)
    reference = args.corruption_reference and read_corruption_reference(
        args.corruption_reference, names, args.severities
    )
    conditions = tuple(Condition(name, s) for name in names for s in args.severities)
    return CorruptionPlan(conditions, args.corruption_seed, reference or None)


def _check_color(names: Sequence[str], channels: int) -> None:
    for name in names:
        if CORRUPTIONS[name].needs_color and channels != 3:
            raise UserError(
                f"corruption {name!r} needs color images, and the model has {channels} channel(s):"
                " expected --corruptions=all, which leaves it out, or others"
            )


def parse_ood_corruptions(args: argparse.Namespace, channels: int) -> dict[str, Condition]:
    """Returns the corruptions of the split that are to be detected, by their name in `--ood`.

    Raises:
      UserError: if one is invalid, or the images are not of the network's input size.
    """
    found = {}
    for text in args.ood:
        if text.startswith(CORRUPTED_PREFIX):
            name, _, severity = text.removeprefix(CORRUPTED_PREFIX).partition(":")
            if name not in CORRUPTIONS:
                raise unknown("corruption", name, CORRUPTIONS)
            if severity not in map(str, SEVERITIES):
                raise UserError(
                    f"--ood is {text!r}: expected corrupted:NAME:SEVERITY, with a severity from 1"
                    " to 5"
                )
            _check_color([name], channels)
            found[text] = Condition(name, int(severity))
    if found and (args.crops != 1 or args.scales):
        raise UserError(
            "--ood=corrupted:... needs images of the network's input size: expected no --crops=10"
            " and no --scales with it"
        )
    return found
