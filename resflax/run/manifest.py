"""SHA-256 manifest of a checkpoint directory.

Orbax restores a flipped bit without an error. The manifest therefore has the SHA-256 of every file,
and that of every saved array, taken in memory, which also detects faults between memory and disk.
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
    """A checkpoint directory differs from its manifest; the message says how."""


def _named_leaves(tree: Any) -> dict[str, np.ndarray]:
    """Returns the leaves as contiguous arrays by path ("params/head/bias"), sorted by path."""
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf, order="C")
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    return dict(sorted(leaves.items()))


def params_sha256(params: Any) -> str:
    """Returns the SHA-256 of all leaves' bytes, in the order of their paths.

    >>> params_sha256({"a": np.zeros(2, np.float32)})[:8]
    'af5570f5'
    """
    digest = hashlib.sha256()
    for array in _named_leaves(params).values():
        digest.update(array.tobytes())
    return digest.hexdigest()


def leaf_checksums(tree: Any) -> dict[str, str]:
    """Returns the SHA-256 of each leaf's dtype, shape and bytes, by its path.

    >>> leaf_checksums({"a": np.zeros(2, np.float32)})["a"][:8]
    '4016bdf5'
    """
    return {
        name: hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + array.tobytes()).hexdigest()
        for name, array in _named_leaves(tree).items()
    }


def verify_leaves(tree: Any, checksums: dict[str, str]) -> None:
    """Raises `CorruptCheckpointError` if a leaf differs from the saved one."""
    restored = leaf_checksums(tree)
    for name in sorted({*checksums, *restored}):
        if checksums.get(name) != restored.get(name):
            raise CorruptCheckpointError(f"array {name} differs from the saved one")


def _file_checksums(folder: Path, skip: str) -> dict[str, str]:
    checksums = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name == MANIFEST or not path.is_file() or (skip and name.startswith(skip)):
            continue
        with path.open("rb") as file:
            checksums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return checksums


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def write_manifest(folder: Path, leaves: dict[str, str]) -> None:
    """Writes the manifest of a complete checkpoint directory.

    Args:
      folder: the directory.
      leaves: `leaf_checksums` of the arrays that were saved in it.
    """
    body = {"files": _file_checksums(folder, ""), "leaves": leaves}
    text = json.dumps({"sha256": _digest(body), **body}, indent=1)
    write_atomic(folder / MANIFEST, text.encode())


def verify_manifest(folder: Path, *, skip: str = "") -> dict[str, str]:
    """Checks a directory against its manifest and returns the checksums of the saved arrays.

    Args:
      folder: the directory.
      skip: prefix of file names that are not read, such as "state/" for the array data.

    Raises:
      CorruptCheckpointError: if a file is missing, was added or has changed, the manifest included.
    """
    if not (folder / MANIFEST).exists():
        raise CorruptCheckpointError(f"it has no {MANIFEST}, so it was not written completely")
    try:
        text = (folder / MANIFEST).read_text()
        body = json.loads(text)
        digest = body.pop("sha256")
        # The exact text: a flipped bit in white space is corruption too.
        intact = digest == _digest(body) and text == json.dumps(
            {"sha256": digest, **body}, indent=1
        )
        files: dict[str, str] = body["files"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        intact = False
    if not intact:
        raise CorruptCheckpointError(f"{MANIFEST} is corrupt")
    try:
        actual = _file_checksums(folder, skip)
    except OSError as e:
        raise CorruptCheckpointError(f"it cannot be read: {e.strerror}") from e
    expected = {n: digest for n, digest in files.items() if not skip or not n.startswith(skip)}
    for name in sorted({*expected, *actual}):
        if name not in actual:
            raise CorruptCheckpointError(f"{name} is missing")
        if name not in expected:
            raise CorruptCheckpointError(f"{name} is not in the manifest")
        if expected[name] != actual[name]:
            raise CorruptCheckpointError(f"{name} has changed since it was written")
    return body["leaves"]
