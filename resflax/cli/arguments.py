"""Checks of a command's arguments, before anything is computed."""

import argparse
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from resflax.errors import UserError
from resflax.evaluate.predictions import require_pyarrow


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
