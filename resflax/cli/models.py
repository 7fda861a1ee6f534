"""`python -m resflax list` and `info NAME`: which networks there are, and what they are."""

import argparse

from resflax.errors import Parser, UserError
from resflax.zoo.cost import cost
from resflax.zoo.registry import create_model, list_models


def list_main(arguments: list[str]) -> None:
    """Prints the names, one a line.

    Raises:
      UserError: if none matches the pattern.
    """
    parser = Parser(prog="python -m resflax list", description="The networks, by name.")
    parser.add_argument("pattern", nargs="?", default="*", help="as in a shell: 'resnext*'")
    args = parser.parse_args(arguments)
    names = list_models(args.pattern)
    if not names:
        raise UserError(f"no network is called {args.pattern!r}: `python -m resflax list` has all")
    print("\n".join(names))


def info_main(arguments: list[str]) -> None:
    """Prints parameters and multiply-adds, stage by stage.

    Raises:
      UserError: on a name or a size that cannot be.
    """
    parser = Parser(
        prog="python -m resflax info",
        description="A network's parts: blocks, output, parameters, multiply-adds for one image.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("name", help="of a network, as `list` has them")
    parser.add_argument("--size", type=int, help="of the image, in pixels; default: the usual one")
    parser.add_argument("--channels", type=int, default=3, help="of the image")
    args = parser.parse_args(arguments)
    model = create_model(args.name, scan=False)
    size = args.size or (32 if model.spec.stem == "cifar" else 224)
    if not model.spec.min_image_size <= size <= 10_000:
        minimum = model.spec.min_image_size
        raise UserError(f"--size is {size}: expected {minimum} to 10000 pixels for {args.name}")
    if not 1 <= args.channels <= 10_000:
        raise UserError(f"--channels is {args.channels}: expected 1 to 10000")
    parts = cost(model, (size, size, args.channels))
    print(f"{args.name}, {size}x{size}x{args.channels}")
    print(f"{'part':8}{'blocks':>8}{'output':>16}{'parameters':>14}{'multiply-adds':>17}")
    for part in parts:
        shape = "x".join(map(str, part.shape))
        blocks = str(part.blocks or "")
        print(f"{part.name:8}{blocks:>8}{shape:>16}{part.parameters:>14,}{part.multiply_adds:>17,}")
    parameters = sum(part.parameters for part in parts)
    work = sum(part.multiply_adds for part in parts)
    print(f"{'total':8}{sum(p.blocks for p in parts):>8}{'':>16}{parameters:>14,}{work:>17,}")
