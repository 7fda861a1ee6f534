"""`resflax list` and `resflax info NAME`: the networks and their costs."""

import argparse

from resflax.errors import Parser, UserError
from resflax.zoo.cost import CLIP_FRAMES, PartCost, default_image_shape, part_costs
from resflax.zoo.registry import create_model, list_models

MAX_SIZE = MAX_CHANNELS = 10_000


def list_main(arguments: list[str]) -> None:
    """Prints the names of all networks, one per line.

    Raises:
      UserError: if no name matches the pattern.
    """
    parser = Parser(prog="resflax list", description="Lists the networks by name.")
    parser.add_argument("pattern", nargs="?", default="*", help="shell-style, such as 'resnext*'")
    args = parser.parse_args(arguments)
    names = list_models(args.pattern)
    if not names:
        raise UserError(f"no network matches {args.pattern!r}: `resflax list` shows all names")
    print("\n".join(names))


def info_main(arguments: list[str]) -> None:
    """Prints parameters and multiply-adds of a network, by stage.

    Raises:
      UserError: on an unknown name or an invalid image size or number of channels.
    """
    parser = Parser(
        prog="resflax info",
        description="Shows output shape, parameters and multiply-adds of a network by stage,"
        " for one image.",
    )
    parser.add_argument("name", help="a network, as listed by `resflax list`")
    parser.add_argument(
        "--size",
        type=int,
        help="side of the image in pixels, or length of a signal; default: 224, 32 for CIFAR stems,"
        f" 1024 for signals, 112 for clips of {CLIP_FRAMES} frames",
    )
    parser.add_argument("--channels", type=int, default=3, help="image channels; default: 3")
    args = parser.parse_args(arguments)
    print(_cost_table(args))


def _cost_table(args: argparse.Namespace) -> str:
    model = create_model(args.name, scan=False)
    shape = default_image_shape(model.spec, size=args.size or 0, channels=args.channels)
    size = shape[-2]
    if not model.spec.min_image_size <= size <= MAX_SIZE:
        raise UserError(
            f"--size is {size}: expected {model.spec.min_image_size} to {MAX_SIZE} pixels"
            f" for {args.name}"
        )
    if not 1 <= args.channels <= MAX_CHANNELS:
        raise UserError(f"--channels is {args.channels}: expected 1 to {MAX_CHANNELS}")
    parts = part_costs(model, shape)
    total = PartCost(
        "total",
        sum(part.blocks for part in parts),
        (),
        sum(part.parameters for part in parts),
        sum(part.multiply_adds for part in parts),
    )
    lines = [
        f"{args.name}, {'x'.join(map(str, shape))}",
        f"{'part':8}{'blocks':>8}{'output':>16}{'parameters':>14}{'multiply-adds':>17}",
    ]
    for part in (*parts, total):
        output = "x".join(map(str, part.output_shape))
        lines.append(
            f"{part.name:8}{part.blocks or '':>8}{output:>16}"
            f"{part.parameters:>14,}{part.multiply_adds:>17,}"
        )
    return "\n".join(lines)
