"""Fingerprint of a dataset, to detect whether and how the data of a run have changed."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

Fingerprint = dict[str, Any]

# Number of files of a folder whose sizes are part of the fingerprint.
MAX_SIZES = 10_000


def arrays_fingerprint(
    images: UInt8[np.ndarray, "examples height width channels"],
    labels: Int[np.ndarray, " examples"],
) -> Fingerprint:
    """Returns the number of examples of a split in memory, by label, and a digest of its content.

    >>> arrays_fingerprint(np.zeros((3, 2, 2, 1), np.uint8), np.array([0, 2, 2]))["per_class"]
    [1, 0, 2]
    """
    digest = hashlib.sha256(f"{images.shape} {images.dtype} ".encode())
    digest.update(np.ascontiguousarray(images).data)
    digest.update(np.asarray(labels, np.int32).tobytes())
    return {
        "examples": len(labels),
        "per_class": np.bincount(labels).tolist(),
        "contents": digest.hexdigest(),
    }


def files_fingerprint(root: Path, files: Sequence[tuple[str, int]]) -> Fingerprint:
    """Returns the number of files of a folder, by label, and a digest of their names and sizes.

    Args:
      root: the folder.
      files: names, relative to `root`, and labels. Sizes are read for `MAX_SIZES` of them, evenly
        spaced; no file is opened. The path of `root` is not part of the fingerprint.
    """
    digest = hashlib.sha256("\n".join(name for name, _ in files).encode("utf-8", "surrogateescape"))
    for i in np.unique(np.linspace(0, len(files) - 1, min(len(files), MAX_SIZES)).astype(int)):
        digest.update(f" {_size(root / files[i][0])}".encode())
    counts = Counter(label for _, label in files)
    return {
        "examples": len(files),
        "per_class": [counts[label] for label in range(max(counts, default=-1) + 1)],
        "files": digest.hexdigest(),
    }


def _size(path: Path) -> int:
    """Returns the size of a file; -1 if it cannot be read, such as a link to a missing file."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def fingerprint_diff(old: Fingerprint, new: Fingerprint) -> list[str]:
    """Lists what differs between two results of `Dataset.fingerprint`, in words.

    >>> old = {"classes": ["cat", "dog"], "splits": {"train": {"examples": 3, "per_class": [1, 2]}}}
    >>> new = {"classes": ["cat", "dog"], "splits": {"train": {"examples": 5, "per_class": [3, 2]}}}
    >>> fingerprint_diff(old, new)
    ["2 examples added to class 'cat' of the train split"]
    """
    changes = list(_class_changes(old["classes"], new["classes"]))
    for verb, first, second in (("added", new, old), ("removed", old, new)):
        names = [name for name in first["splits"] if name not in second["splits"]]
        changes += [f"the {name} split was {verb}" for name in names]
    for name, split in new["splits"].items():
        if name not in old["splits"]:
            continue
        before = dict(zip(old["classes"], old["splits"][name].get("per_class", ()), strict=False))
        after = dict(zip(new["classes"], split.get("per_class", ()), strict=False))
        changes += _split_changes(name, old["splits"][name], split, before, after)
    return changes


def _class_changes(old: list[str], new: list[str]) -> Iterator[str]:
    if old == new:
        return
    removed, added = [n for n in old if n not in new], [n for n in new if n not in old]
    if not removed and not added:
        yield f"the classes are in another order, {_names(new)}"
    elif len(removed) == len(added):
        yield f"classes {_names(removed)} renamed to {_names(added)}"
    else:
        for verb, names in (("removed", removed), ("added", added)):
            if names:
                yield f"classes {_names(names)} {verb}"


def _split_changes(
    name: str, old: Fingerprint, new: Fingerprint, before: dict[str, int], after: dict[str, int]
) -> Iterator[str]:
    """Yields the changes of one split; `before` and `after` are its numbers by class name."""
    both = [c for c in before if c in after]
    changed = [(c, after[c] - before[c]) for c in both if after[c] != before[c]]
    for c, difference in changed[:3]:
        verb = "added to" if difference > 0 else "removed from"
        yield f"{_count(abs(difference))} {verb} class {c!r} of the {name} split"
    if len(changed) > 3:
        yield f"{len(changed) - 3} more classes of the {name} split changed"
    elif not changed and old["examples"] != new["examples"]:
        yield f"the {name} split has {_count(new['examples'])} instead of {old['examples']}"
    elif not changed:
        for key in ("files", "contents", "version"):
            if old.get(key) != new.get(key):
                yield f"the {key} of the {name} split changed"


def _count(examples: int) -> str:
    return f"{examples} example{'s' * (examples != 1)}"


def _names(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
