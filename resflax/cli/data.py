"""`python -m resflax data prepare NAME | show --config=FILE`: sets made ready, and looked at."""

import shlex
import sys
from pathlib import Path

from absl import logging

from resflax.cli.flags import parse
from resflax.cli.show_batch import show
from resflax.data.prepare import prepare
from resflax.errors import Parser, UserError, unknown
from resflax.train.config import check_config

USAGE = """usage: python -m resflax data {prepare,show} ...

  prepare NAME      a set of TensorFlow Datasets, once; --help tells more
  show --config=FILE [--config.KEY=VALUE ...] [--out=data.png]
                    the first examples of a run, before and after what the step does to them"""


def main(arguments: list[str]) -> None:
    """Runs the command that the arguments name.

    Raises:
      UserError: on anything that cannot be understood, found or prepared.
    """
    command, *rest = arguments or ["--help"]
    if command in ("-h", "--help"):
        print(USAGE)
    elif command in COMMANDS:
        logging.set_verbosity(logging.ERROR)
        COMMANDS[command](rest)
    else:
        raise unknown("command", command, COMMANDS)


def prepare_main(arguments: list[str]) -> None:
    """Prepares a set."""
    parser = Parser(prog="python -m resflax data prepare")
    parser.add_argument("name", help="as TFDS spells it")
    parser.add_argument(
        "--data_dir", default="", help="where prepared sets lie; default: TFDS's own"
    )
    parser.add_argument("--manual_dir", default="", help="a folder with the set's archives")
    args = parser.parse_args(arguments)
    folder = prepare(args.name, args.data_dir, args.manual_dir)
    where = f" --config.data.data_dir={shlex.quote(args.data_dir)}" if args.data_dir else ""
    print(f"prepared {folder}\npython train.py --config.dataset={shlex.quote(args.name)}{where}")


def show_main(arguments: list[str]) -> None:
    """Draws the first examples of a run."""
    if {"-h", "--help"} & {*arguments}:
        print(USAGE)
        return
    out, rest = Path("data.png"), []
    for word in arguments:
        name, _, value = word.partition("=")
        if name == "--out":
            out = Path(value)
        else:
            rest.append(word)
    if not any(word.startswith("--config=") for word in rest):
        raise UserError("show needs a recipe: --config=FILE")
    if out.suffix != ".png" or not out.absolute().parent.is_dir():
        raise UserError(f"--out is {out}: expected a .png in a folder that is there")
    saved, sys.argv = sys.argv, ["show", *rest]
    try:
        command = parse(Path("none"))
    finally:
        sys.argv = saved
    if command.workdir:
        raise UserError("show takes no --workdir: it writes the picture of --out alone")
    check_config(command.config)
    show(command.config, out)
    print(f"saved {out}")


COMMANDS = {"prepare": prepare_main, "show": show_main}
