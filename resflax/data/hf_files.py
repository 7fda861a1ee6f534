"""Files of Hugging Face datasets on disk: Parquet files, and the folders of `save_to_disk`."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from resflax.data.split_names import role_of_split
from resflax.errors import UserError

SUFFIXES = (".parquet", ".arrow")
# "train-00000-of-00002-a09b74b3ef9c3b56": the split's name and the number of the file.
SHARD = re.compile(r"(?P<name>.*?)-\d+-of-\d+(-[0-9a-f]+)?$")
EXPECTED = (
    "expected Parquet files such as data/train-00000-of-00001.parquet, a folder written by"
    " save_to_disk, or one file"
)


class SplitFiles(NamedTuple):
    """The files of each split of a dataset.

    Attributes:
      root: the folder.
      files: name of the split, and its files in order.
    """

    root: Path
    files: dict[str, tuple[Path, ...]]


def find_files(path: Path) -> SplitFiles:
    """Finds the files of each split of a Hugging Face dataset.

    Args:
      path: a folder of Parquet files, also one of a dataset in the cache of the Hub; a folder that
        `save_to_disk` wrote; or one file.

    Raises:
      UserError: if there are none, or files of several configurations.
    """
    if path.is_file() and path.suffix in SUFFIXES:
        name, _ = _split_of(path, path.parent)
        return SplitFiles(path.parent, {name or "train": (path,)})
    if not path.is_dir():
        raise UserError(f"{path} does not exist or is not a dataset: {EXPECTED}")
    root = _snapshot(path)
    saved = dict(_saved_splits(root))
    if saved:
        return SplitFiles(root, saved)
    groups: dict[Path, dict[str, list[Path]]] = {}
    for file in sorted(p for suffix in SUFFIXES for p in root.rglob(f"*{suffix}")):
        if file.name.startswith((".", "cache-")) or not file.is_file():
            continue  # the library `datasets` keeps results beside its files
        name, folder = _split_of(file, root)
        groups.setdefault(folder, {}).setdefault(name or "train", []).append(file)
    if not groups:
        raise UserError(f"{root} has no {' or '.join(SUFFIXES)} files: {EXPECTED}")
    if len(groups) > 1:
        folders = sorted(str(folder.relative_to(root)) for folder in groups)
        raise UserError(
            f"{root} has several configurations, {', '.join(folders)}: choose one, such as"
            f" hf:{root / folders[-1]}"
        )
    [splits] = groups.values()
    return SplitFiles(root, {name: tuple(files) for name, files in splits.items()})


def _snapshot(path: Path) -> Path:
    """Returns the only snapshot of a dataset in the cache of the Hub; else the path itself."""
    snapshots = [p for p in path.glob("snapshots/*") if p.is_dir()]
    return snapshots[0] if len(snapshots) == 1 else path


def _saved_splits(root: Path) -> Iterator[tuple[str, tuple[Path, ...]]]:
    """Yields the splits of a folder that `save_to_disk` wrote, from the JSON files in it."""
    listed = _read_json(root / "dataset_dict.json").get("splits", [])
    for folder in [root / name for name in listed] or [root]:
        state = _read_json(folder / "state.json")
        files = [folder / entry["filename"] for entry in state.get("_data_files", [])]
        for file in files:
            if not file.is_file():
                raise UserError(f"{file} is missing: expected every file of {folder}/state.json")
        if files:
            name = folder.name if listed else str(state.get("_split") or "train")
            yield name, tuple(files)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _split_of(file: Path, root: Path) -> tuple[str, Path]:
    """Returns the split of a file, "" if the name has none, and the folder of its configuration.

    >>> _split_of(Path("x/data/train-00000-of-00002.parquet"), Path("x"))
    ('train', PosixPath('x'))
    >>> _split_of(Path("x/default/test/0000.parquet"), Path("x"))
    ('test', PosixPath('x/default'))
    """
    folder, match = file.parent, SHARD.match(file.stem)
    name = match["name"] if match else file.stem
    words = re.split(r"[-. ]" if match else r"[-_. ]", name)
    split = next((word for word in words if role_of_split(word)), name if match else "")
    if folder != root and role_of_split(folder.name):
        split, folder = folder.name, folder.parent
    if folder != root and folder.name == "data":
        folder = folder.parent
    return split, folder
