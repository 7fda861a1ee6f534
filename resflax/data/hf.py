"""Hugging Face datasets on disk, read by pyarrow: `hf:PATH`.

Files written by `save_to_disk` are mapped into memory. Parquet files can only be read in groups of
rows, of which those read last are kept.
"""

import contextlib
import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from resflax.data.decode import BadExampleError, decode
from resflax.data.fingerprint import Fingerprint
from resflax.data.held_out import SourceSubset
from resflax.data.hf_columns import Columns, find_columns, read_labels
from resflax.data.hf_files import find_files
from resflax.data.location import FeatureKeys
from resflax.data.named_splits import default_split, open_named_splits
from resflax.data.source import Source, SplitSources, check_two_classes
from resflax.data.split_expressions import overlap, parse_expression, part_indices
from resflax.data.split_names import role_of_split
from resflax.errors import UserError

# Encoded images of Parquet files that a process keeps.
MAX_KEPT_BYTES = 512 * 2**20
# Bytes at the end of a file that are part of the fingerprint.
END_BYTES = 64 * 2**10


class HfSource:
    """Examples of some files of a Hugging Face dataset, in order (see `Source`).

    Args:
      name: name of the split.
      root: folder of the dataset.
      files: Parquet or Arrow files.
      columns: the columns of images and labels.
      train: the training split, whose classes the split has; None for itself.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        files: Sequence[Path],
        columns: Columns,
        train: "HfSource | None" = None,
    ) -> None:
        if train and not columns.names:
            columns = columns._replace(names=train.columns.names)
        self.name, self.root, self.files = name, root, tuple(files)
        self.columns: Columns = columns
        self.classes: tuple[str, ...]
        self.problems: list[str] = []
        column = _read_column(self.files, columns.label)
        classes = train.classes if train else ()
        self._labels, self.classes = read_labels(name, column, columns.names, classes)
        self._open()

    def _open(self) -> None:
        self._lock, self._kept = threading.Lock(), dict[tuple[int, int], Any]()

    def __getstate__(self) -> dict[str, Any]:
        """Returns what worker processes need; they open the files again."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_kept", "_groups")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def has_labels(self) -> bool:
        """Whether some example has a label."""
        return bool((self._labels >= 0).any())

    def labels(self) -> Int[np.ndarray, " examples"] | None:
        """Returns the label of each example; None if one is missing."""
        return self._labels if (self._labels >= 0).all() else None

    def location(self, index: int) -> str:
        """Returns the split and index of an example."""
        return f"{self.name}[{index}]"

    def file_name(self, index: int) -> str:
        """Returns the name of the file that an image was; "" if it is not recorded."""
        value = self._value(index)
        return str(value.get("path") or "") if isinstance(value, dict) else ""

    def read(
        self, index: int, channels: int = 0
    ) -> tuple[UInt8[np.ndarray, "height width channels"], int]:
        """Returns the pixels and the label of an example."""
        location, label = self.location(index), int(self._labels[index])
        if label < 0:
            raise BadExampleError(location, "has no label")
        value = self._value(index)
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None and isinstance(value, dict) and value.get("path"):
            data = self.root / value["path"]
        if data is None:
            raise BadExampleError(location, "has no image")
        return decode(data, location, channels), label

    def fingerprint(self) -> Fingerprint:
        """Returns the number of examples, by label, and a digest of labels and files.

        Of the files, it has names, sizes and ends, which describe all groups of rows.
        """
        digest = hashlib.sha256(self._labels.tobytes())
        for file in self.files:
            size = file.stat().st_size
            digest.update(f"{file.relative_to(self.root)} {size}".encode())
            with file.open("rb") as opened:
                opened.seek(max(0, size - END_BYTES))
                digest.update(opened.read())
        labels = np.bincount(self._labels[self._labels >= 0], minlength=len(self.classes))
        return {
            "examples": len(self),
            "per_class": labels.tolist(),
            "files": digest.hexdigest(),
        }

    def _value(self, index: int) -> Any:
        """Returns the image of an example as it is stored: bytes, or a dictionary."""
        starts, groups = self._groups
        k = int(np.searchsorted(starts, index, side="right")) - 1
        with self._lock:
            if groups[k] not in self._kept:
                self._kept[groups[k]] = _read_group(self.files, groups[k], self.columns.image)
                self._forget()
            rows = self._kept[groups[k]]
        return rows[index - int(starts[k])].as_py()

    def _forget(self) -> None:
        """Drops the groups that were read first, if all together are too large."""
        while len(self._kept) > 1 and sum(g.nbytes for g in self._kept.values()) > MAX_KEPT_BYTES:
            del self._kept[next(iter(self._kept))]

    @cached_property
    def _groups(self) -> tuple[Int[np.ndarray, " groups"], list[tuple[int, int]]]:
        """The index of the first example of each group of rows; the number of file and group."""
        groups, starts, start = list[tuple[int, int]](), list[int](), 0
        for number, file in enumerate(self.files):
            for group, rows in enumerate(_group_lengths(file)):
                groups.append((number, group))
                starts.append(start)
                start += rows
        return np.array(starts), groups


class HfDataset:
    """A Hugging Face dataset on disk.

    Args:
      name: its name, "hf:PATH".
      path: see `find_files`.
      keys: names of the columns with images and labels; "" chooses.

    Raises:
      UserError: if there are no files, they cannot be read, or the columns are not known.
    """

    def __init__(self, name: str, path: Path, keys: FeatureKeys) -> None:
        self.name, self._keys = name, keys
        self._root, self._files = find_files(path)

    @cached_property
    def lengths(self) -> dict[str, int]:
        """The number of examples of each split."""
        return {
            name: sum(rows for file in files for rows in _group_lengths(file))
            for name, files in self._files.items()
        }

    def open_splits(self, chosen: Mapping[str, str]) -> SplitSources:
        """Opens the splits; see `open_named_splits`."""
        sources = open_named_splits(self.name, self.lengths, chosen, self._open)
        check_two_classes(sources.train)
        return sources

    def open_split(self, split: str) -> Source:
        """Opens one split or expression; "" is the test split, or else the validation split."""
        if not split:
            return default_split(self.name, self.lengths, self.open_splits({}))
        train = next((name for name in self._files if role_of_split(name) == "train"), "")
        return self._open(split, self._open(train) if train else None)

    def overlap(self, first: str, second: str) -> bool:
        """Returns whether two splits have common examples."""
        return overlap(self.name, first, second, self.lengths)

    def _open(
        self, split: str, train: HfSource | SourceSubset | None = None
    ) -> HfSource | SourceSubset:
        """Opens a split or an expression, with the classes of the training split."""
        parts = parse_expression(self.name, split, self.lengths)
        names = list(dict.fromkeys(part.split for part in parts))
        files = [file for name in names for file in self._files[name]]
        columns = find_columns(self.name, _schema(files[0]), self._keys)
        name = f"{self.name}, {split}"
        source = HfSource(name, self._root, files, columns, _whole(train) if train else None)
        if split in self._files:
            return source
        ends = np.cumsum([0, *(self.lengths[name] for name in names)])
        offsets = dict(zip(names, ends[:-1].tolist(), strict=True))
        return SourceSubset(source, part_indices(parts, offsets), name)


def _whole(source: HfSource | SourceSubset) -> HfSource:
    """Returns the splits that an expression is a part of."""
    whole = source.source if isinstance(source, SourceSubset) else source
    assert isinstance(whole, HfSource)
    return whole


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as e:
        raise UserError('hf: needs pyarrow: pip install "resflax[hf]"') from e
    return pyarrow


@contextlib.contextmanager
def _file_errors(file: Path) -> Iterator[None]:
    """Turns errors of pyarrow on a file into a `UserError`."""
    try:
        yield
    except (_pyarrow().ArrowException, OSError) as e:
        reason = " ".join(str(e).split())[:160]
        raise UserError(f"{file} cannot be read: {reason}: write or download it again") from e


def _open_file(file: Path) -> Any:
    """Opens a file: a `ParquetFile`, or a table that is mapped into memory."""
    pa = _pyarrow()
    with _file_errors(file):
        if file.suffix == ".parquet":
            return pa.parquet.ParquetFile(file)
        mapped = pa.memory_map(str(file))
        try:
            return pa.ipc.open_stream(mapped).read_all()
        except pa.ArrowInvalid:
            return pa.ipc.open_file(mapped).read_all()


def _schema(file: Path) -> Any:
    opened = _open_file(file)
    return opened.schema_arrow if file.suffix == ".parquet" else opened.schema


def _group_lengths(file: Path) -> list[int]:
    """Returns the number of rows of each group of rows; an Arrow file is one group."""
    opened = _open_file(file)
    if file.suffix != ".parquet":
        return [opened.num_rows]
    metadata = opened.metadata
    return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]


def _read_group(files: Sequence[Path], group: tuple[int, int], column: str) -> Any:
    """Reads a column of a group of rows."""
    number, row_group = group
    opened = _open_file(files[number])
    if files[number].suffix != ".parquet":
        return opened[column]
    with _file_errors(files[number]):
        return opened.read_row_group(row_group, columns=[column])[column]


def _read_column(files: Sequence[Path], column: str) -> Any:
    """Reads a column of all rows of some files."""
    parts = list[Any]()
    for file in files:
        table = _open_file(file)
        with _file_errors(file):
            is_parquet = file.suffix == ".parquet"
            parts.append((table.read(columns=[column]) if is_parquet else table)[column])
    chunks = [chunk for part in parts for chunk in part.chunks]
    return _pyarrow().chunked_array(chunks, parts[0].type)
