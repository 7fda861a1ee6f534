"""Fingerprint of a dataset, to detect whether the data of a run have changed.

`fingerprint_diff.py` says how they have changed.
"""

import hashlib
import heapq
import os
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Num

from resflax.errors import printable

Fingerprint = dict[str, Any]

# Number of files of a folder whose sizes are part of the fingerprint.
MAX_SIZES = 10_000
# Number of examples on disk whose contents are part of the fingerprint.
SAMPLE_SIZE = 256


def arrays_fingerprint(
    images: Num[np.ndarray, "examples *space channels"],
    labels: Int[np.ndarray, " examples"],
) -> Fingerprint:
    """Returns the number of examples of a split in memory, by label, and digests of their content.

    >>> arrays_fingerprint(np.zeros((3, 2, 2, 1), np.uint8), np.array([0, 2, 2]))["per_class"]
    [1, 0, 2]
    """
    digest = hashlib.sha256(f"{images.shape} {images.dtype} ".encode())
    digest.update(np.ascontiguousarray(images).data)
    digest.update(np.asarray(labels, np.int32).tobytes())
    per_class = np.bincount(labels).tolist()
    classes = (np.ascontiguousarray(images[labels == i]).data for i in range(len(per_class)))
    return {
        "examples": len(labels),
        "per_class": per_class,
        "contents": digest.hexdigest(),
        "class_contents": [short_digest(pixels) for pixels in classes],
    }


def files_fingerprint(root: Path, files: Sequence[tuple[str, int]]) -> Fingerprint:
    """Returns the number of files of a folder, by label, and digests of names, sizes and contents.

    Args:
      root: the folder. Its path is not part of the fingerprint.
      files: names, relative to `root`, and labels. Sizes are read for `MAX_SIZES` of them, evenly
        spaced, and contents for `SAMPLE_SIZE`.
    """
    names = [_normalized(name) for name, _ in files]
    text = "\n".join(f"{name}\t{label}" for name, (_, label) in zip(names, files, strict=True))
    digest = hashlib.sha256(text.encode())
    for i in evenly_spaced(len(files), MAX_SIZES):
        digest.update(f" {_size(root / files[i][0])}".encode())
    counts = Counter(label for _, label in files)
    return {
        "examples": len(files),
        "per_class": [counts[label] for label in range(max(counts, default=-1) + 1)],
        "files": digest.hexdigest(),
        "sample": _sample_files(root, files, names),
    }


def examples_fingerprint(count: int, read: Callable[[int], tuple[bytes, int]]) -> Fingerprint:
    """Returns the number of examples, and the label and contents of `SAMPLE_SIZE` of them.

    Args:
      count: number of examples.
      read: `(index) -> contents, label`.
    """
    read_sample = ((i, *read(i)) for i in evenly_spaced(count, SAMPLE_SIZE))
    sample = {f"[{i}]": [label, short_digest(contents)] for i, contents, label in read_sample}
    return {"examples": count, "sample": sample}


def evenly_spaced(count: int, maximum: int) -> list[int]:
    """Returns at most `maximum` evenly spaced indices.

    >>> evenly_spaced(9, 3), evenly_spaced(2, 3)
    ([0, 4, 8], [0, 1])
    """
    return sorted({*np.linspace(0, count - 1, min(count, maximum)).astype(int).tolist()})


def short_digest(data: Any) -> str:
    """Returns 16 hexadecimal digits of the SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()[:16]


def sample_rank(name: str) -> tuple[int, int]:
    """Returns the rank of a file: the fingerprint has the contents of those with the lowest ranks.

    An added or removed file changes at most one other file of the sample. Files of equal names in
    different classes have similar ranks, so that swapped classes are found.
    """
    data = name.encode()
    return zlib.crc32(data.rpartition(b"/")[2]), zlib.crc32(data)


def _sample_files(
    root: Path, files: Sequence[tuple[str, int]], names: Sequence[str]
) -> dict[str, list[Any]]:
    """Returns label and digest by name, of the files of the lowest ranks."""
    chosen = heapq.nsmallest(SAMPLE_SIZE, range(len(files)), key=lambda i: sample_rank(names[i]))
    with ThreadPoolExecutor(8) as pool:
        digests = pool.map(lambda i: _contents(root / files[i][0]), chosen)
        return {names[i]: [files[i][1], d] for i, d in zip(chosen, digests, strict=True)}


def _normalized(name: str) -> str:
    """Returns a path as text that is the same on all systems."""
    path = name if name.isascii() else unicodedata.normalize("NFC", name)
    return printable(path.replace(os.sep, "/"))


def _size(path: Path) -> int:
    """Returns the size of a file; -1 if it cannot be read, such as a link to a missing file."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _contents(path: Path) -> str:
    try:
        return short_digest(path.read_bytes())
    except OSError:
        return ""
