"""A folder of files that tells whether it is whole: one file holds the checksums of all others.

Orbax restores a flipped bit in silence. So each file has its SHA-256, and each array that was saved
has one of its own, taken in memory: a fault between memory and disk shows as well.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from resflax.files import write_atomic

MANIFEST = "checksums.json"


class CorruptCheckpointError(Exception):
    """What is wrong with a folder."""


def leaf_checksums(tree: Any) -> dict[str, str]:
    """The SHA-256 of each array's type, shape and bytes, by its path, "params/head/bias".

    >>> leaf_checksums({"a": np.zeros(2, np.float32)})["a"][:8]
    '4016bdf5'
    """
    sums = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        digest = hashlib.sha256(f"{array.dtype} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
        sums[jax.tree_util.keystr(path, simple=True, separator="/")] = digest.hexdigest()
    return sums


def _file_sums(folder: Path) -> dict[str, str]:
    sums = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name != MANIFEST and path.is_file():
            with path.open("rb") as file:
                sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def write_manifest(folder: Path, leaves: dict[str, str]) -> None:
    """Writes the checksums of all files of a folder, and those of the arrays in it."""
    body = {"files": _file_sums(folder), "leaves": leaves}
    text = json.dumps({"sha256": _digest(body), **body}, indent=1)
    write_atomic(folder / MANIFEST, text.encode())


def verify_manifest(folder: Path) -> dict[str, str]:
    """The checksums of the arrays in a folder whose files are what they were when it was sealed.

    Raises:
      DamagedError: if a file is missing, was added or has changed, the checksums' own included.
    """
    if not (folder / MANIFEST).exists():
        raise CorruptCheckpointError(f"it has no {MANIFEST}, so it was not written to its end")
    try:
        text = (folder / MANIFEST).read_text()
        body = json.loads(text)
        told = body.pop("sha256")
        # As it was written, to the letter: a bit may flip in the blanks as well.
        whole = told == _digest(body) and text == json.dumps({"sha256": told, **body}, indent=1)
        files: dict[str, str] = body["files"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise CorruptCheckpointError(f"{MANIFEST} is damaged")
    try:
        found = _file_sums(folder)
    except OSError as e:
        raise CorruptCheckpointError(f"it cannot be read: {e.strerror}") from e
    for name in sorted({*files, *found}):
        if name not in found:
            raise CorruptCheckpointError(f"{name} is missing")
        if name not in files:
            raise CorruptCheckpointError(f"{name} does not belong there")
        if files[name] != found[name]:
            raise CorruptCheckpointError(f"{name} has changed since it was written")
    return body["leaves"]


def verify_leaves(tree: Any, leaves: dict[str, str]) -> None:
    """Raises `CorruptCheckpointError` if an array is not the one that was saved."""
    found = leaf_checksums(tree)
    for name in sorted({*leaves, *found}):
        if leaves.get(name) != found.get(name):
            raise CorruptCheckpointError(f"{name} is not what was saved")
