"""Arguments that several commands have, and checks before anything is computed."""

import argparse
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from resflax.distributed import DistributedConfig
from resflax.errors import UserError
from resflax.evaluate.predictions import require_pyarrow
from resflax.files import where_type


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options for how the examples of a dataset are read."""
    add = parser.add_argument
    for kind in ("image", "label"):
        text = f"name of the {kind} in examples of TFDS and hf:; default: as the run, or chosen"
        add(f"--{kind}-key", default="", metavar="NAME", help=text)
    add("--data-dir", default="", type=where_type, help="directory of prepared TFDS datasets")
    text = "processes that read images, at most 4 per CPU core; 0 for threads"
    add("--num-workers", type=int, default=0, help=text)


def add_process_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options for several processes; see `process_config`."""
    group = parser.add_argument_group("several processes, see resflax train --help")
    group.add_argument("--distributed", action="store_true")
    group.add_argument("--coordinator", default="", metavar="HOST:PORT")
    group.add_argument("--num-processes", type=int)
    group.add_argument("--process-id", type=int)


def process_config(args: argparse.Namespace) -> DistributedConfig:
    """Returns the values of `add_process_options`, and those of Open MPI.

    Raises:
      UserError: if they are invalid.
    """
    config = DistributedConfig(
        args.distributed, args.coordinator, args.num_processes, args.process_id
    ).from_env()
    config.validate()
    return config


def check_minimum(args: argparse.Namespace, **minimums: int) -> None:
    """Raises `UserError` if a number is smaller than its minimum.

    >>> check_minimum(argparse.Namespace(batch_size=0), batch_size=1)
    Traceback (most recent call last):
    resflax.errors.UserError: --batch-size is 0: expected 1 or more
    """
    for name, minimum in minimums.items():
        if (value := getattr(args, name)) < minimum:
            raise UserError(f"--{name.replace('_', '-')} is {value}: expected {minimum} or more")


def check_output(flag: str, path: Path | None, suffixes: Iterable[str]) -> None:
    """Checks that a file can be written, before anything is computed.

    Raises:
      UserError: if the name has another suffix, the folder is missing, or a package is missing.
    """
    if path is None:
        return
    if path.suffix not in suffixes:
        raise UserError(f"{flag} is {path}: expected a name ending in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise UserError(f"{flag} is {path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise UserError(f"{flag} is {path}, a folder: expected the name of a file")
    require_pyarrow(flag, path)


def check_distinct(outputs: Mapping[str, Path | None], inputs: Iterable[str | Path | None]) -> None:
    """Checks that no output is another one or an input.

    Args:
      outputs: files by the name of their option; None for an option that is not given.
      inputs: files that are read.

    Raises:
      UserError: if an output would overwrite one of them.
    """
    used = {Path(path).resolve(): f"the input {path}" for path in inputs if path}
    for flag, path in outputs.items():
        if path is None:
            continue
        if path.resolve() in used:
            raise UserError(f"{flag} is {path}, which is {used[path.resolve()]}: choose another")
        used[path.resolve()] = f"the value of {flag}"


def check_out_dir(out: Path) -> None:
    """Raises `UserError` if `--out` is not a directory that can be written to or created."""
    check_can_create("--out", out, out)


def check_can_create(option: str, value: Path, folder: Path) -> None:
    """Raises `UserError` if a folder, of the value of an option, cannot be written or created."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"{option} is {value}: {existing} is not a directory one can write to")
