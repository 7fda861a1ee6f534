"""Arrays in NumPy's files: one .npz, a folder of .npy files, or class folders of .npy files."""

import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from resflax.errors import UserError

Arrays = dict[str, np.ndarray]
SUFFIXES = (".npy", ".npz")
# What NumPy raises for damaged files.
DAMAGED = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, tokenize.TokenError)


def is_array(path: str | os.PathLike[str]) -> bool:
    """Returns whether a file has the suffix of NumPy's files.

    >>> is_array("a.npy"), is_array("a.png")
    (True, False)
    """
    return os.path.splitext(path)[1] in SUFFIXES


def read_arrays(path: Path) -> Arrays:
    """Returns the arrays by name of an .npz file, or of the .npy files in a folder.

    Raises:
      UserError: if it is neither, or an array cannot be read.
    """
    if path.is_dir():
        return {file.stem: read_array(file) for file in sorted(path.glob("*.npy"))}
    if path.suffix != ".npz":
        raise UserError(
            f"npz:{path} is not an .npz file or a folder: expected a file with the arrays x_train,"
            " y_train, x_test and y_test, as numpy.savez writes it, or a folder of .npy files"
        )
    return dict(_read(path))


def read_array(path: Path) -> np.ndarray:
    """Returns the array of an .npy file, or of an .npz file with only one.

    Raises:
      UserError: if it cannot be read.
    """
    arrays = list(_read(path))
    if len(arrays) != 1:
        raise UserError(f"{path} has {len(arrays)} arrays: expected one example per file")
    return arrays[0][1]


def _read(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    name = ""
    try:
        with path.open("rb") as file:  # `np.load` of a path leaves damaged files open
            content: Any = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                yield path.stem, content
                return
            for name in content.files:
                yield name, content[name]
    except FileNotFoundError:
        raise UserError(f"file not found: {path}") from None
    except DAMAGED as e:
        array = f"the array {name!r} in {path}" if name else str(path)
        if "Object arrays" in str(e):
            raise UserError(
                f"{array} has Python objects, which are not read since they can run code: save it"
                " with a dtype of numbers, such as float32"
            ) from e
        # NumPy takes other files for pickles.
        reason = "not a NumPy file" if "pickle" in str(e) else getattr(e, "strerror", None) or e
        raise UserError(f"cannot read {array}: {reason}") from e


def find_class_files(root: Path) -> list[tuple[str, Path]]:
    """Returns the class and the path of each example in `root/CLASS/*.npy` or .npz, in order."""
    return [
        (folder.name, file)
        for folder in sorted(root.iterdir())
        if folder.is_dir()
        for file in sorted(folder.iterdir())
        if file.suffix in SUFFIXES
    ]
