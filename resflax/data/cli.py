"""`python -m resflax data prepare NAME`: sets of TensorFlow Datasets, ready to train on."""

import shlex

from resflax.data.prepare import prepare
from resflax.errors import Parser


def main(arguments: list[str]) -> None:
    """Runs the command that the arguments name.

    Raises:
      UserError: on anything that cannot be understood, found or prepared.
    """
    parser = Parser(prog="python -m resflax data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    sub = commands.add_parser("prepare", help="prepare a set of TensorFlow Datasets, once")
    sub.add_argument("name", help="as TFDS spells it")
    sub.add_argument("--data_dir", default="", help="where prepared sets lie; default: TFDS's own")
    sub.add_argument("--manual_dir", default="", help="a folder with the set's archives")
    args = parser.parse_args(arguments)
    folder = prepare(args.name, args.data_dir, args.manual_dir)
    where = f" --config.data.dir={shlex.quote(args.data_dir)}" if args.data_dir else ""
    print(f"prepared {folder}\npython train.py --config.dataset={shlex.quote(args.name)}{where}")
