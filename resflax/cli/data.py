"""`resflax data prepare NAME` and `resflax data show`."""

import shlex
from pathlib import Path

from absl import logging

from resflax.cli.flags import parse
from resflax.cli.show_batch import show_batch
from resflax.errors import Parser, UserError, unknown
from resflax.files import disk_errors_as_user_error, user_path, where_type
from resflax.train import check_config

USAGE = """usage: resflax data {prepare,show} ...

  prepare NAME      prepare a dataset of TensorFlow Datasets, once (needs TensorFlow); see
                    resflax data prepare --help
  show [--config=FILE] [--config.KEY=VALUE ...] [--out=data.png]
                    draw the first examples of a run, each as it is on disk, and below it as
                    it is trained on, with the names of the classes"""


def main(arguments: list[str]) -> None:
    """Runs `prepare` or `show`.

    Raises:
      UserError: on arguments that cannot be parsed, or a dataset that cannot be found or prepared.
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
    """Prepares a dataset of TensorFlow Datasets."""
    parser = Parser(prog="resflax data prepare")
    parser.add_argument("name", help="name of the dataset in TensorFlow Datasets")
    parser.add_argument(
        "--data-dir",
        default="",
        type=where_type,
        help="directory of prepared datasets; default: that of TFDS",
    )
    text = "directory with the dataset's archives"
    parser.add_argument("--manual-dir", default="", type=where_type, help=text)
    args = parser.parse_args(arguments)
    from resflax.data.prepare import prepare  # imports TensorFlow Datasets

    folder = prepare(args.name, args.data_dir, args.manual_dir)
    data_dir = f" --config.data.data_dir={shlex.quote(args.data_dir)}" if args.data_dir else ""
    print(f"prepared {folder}\nresflax train --config.dataset={shlex.quote(args.name)}{data_dir}")


def show_main(arguments: list[str]) -> None:
    """Draws the first examples of a run."""
    if {"-h", "--help"} & {*arguments}:
        print(USAGE)
        return
    out, rest = Path("data.png"), []
    for word in arguments:
        name, _, value = word.partition("=")
        if name == "--out":
            out = user_path(value, name)
        else:
            rest.append(word)
    if out.suffix != ".png" or not out.absolute().parent.is_dir():
        raise UserError(f"--out is {out}: expected a .png file in an existing directory")
    command = parse(rest)
    if command.workdir:
        raise UserError("show takes no --workdir: it writes the picture of --out only")
    check_config(command.config)
    print(*command.notes, sep="\n", end="\n" * bool(command.notes))
    advice = "free disk space, or choose another --out"
    with disk_errors_as_user_error(f"{out} cannot be written", lambda: advice):
        show_batch(command.config, out)
    print(f"saved {out}")


COMMANDS = {"prepare": prepare_main, "show": show_main}
