"""Files of predictions (.csv, .jsonl) and of features (.npz, .csv, .parquet).

A file appears under its name when it is complete; until then its name ends in ".part".
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from resflax.cli.image_outputs import OutputBatch, Prediction
from resflax.errors import UserError
from resflax.evaluate.predictions import require_pyarrow
from resflax.files import (
    disk_errors_as_user_error,
    encode_text,
    format_csv,
    open_atomic,
    replace_undecodable,
)

COLUMNS = ("path", "rank", "label", "class", "probability")
Write = Callable[[OutputBatch], None]


def encode_csv(path: str, predictions: Sequence[Prediction]) -> str:
    r"""Returns one CSV row per prediction.

    >>> encode_csv("a.png", [Prediction(1, 7, "cat, tabby", 0.75)])
    'a.png,1,7,"cat, tabby",0.75\n'
    """
    return format_csv((path, *p[:3], f"{p.probability:.9g}") for p in predictions)


def encode_json(path: str, predictions: Sequence[Prediction]) -> str:
    """Returns one JSON object per image, on one line.

    >>> encode_json("a.png", [Prediction(1, 7, "cat", 0.75)])[:61]
    '{"path": "a.png", "predictions": [{"rank": 1, "label": 7, "cl'
    """
    objects = [dict(zip(COLUMNS[1:], prediction, strict=True)) for prediction in predictions]
    return json.dumps({"path": path, "predictions": objects}) + "\n"


# Suffix: header, and the function that encodes the predictions of one image.
PREDICTION_FORMATS: dict[str, tuple[str, Callable[[str, Sequence[Prediction]], str]]] = {
    ".csv": (",".join(COLUMNS) + "\n", encode_csv),
    ".jsonl": ("", encode_json),
}


@contextlib.contextmanager
def open_predictions(path: Path) -> Iterator[Write]:
    """Opens a file of predictions; yields a function that appends those of a batch."""
    header, encode = PREDICTION_FORMATS[path.suffix]
    with _disk_errors(path), open_atomic(path) as file:
        _write_text(file, header)

        def write(batch: OutputBatch) -> None:
            for image, predictions in zip(batch.paths, batch.predictions, strict=True):
                _write_text(file, encode(image, predictions))

        yield write


@contextlib.contextmanager
def open_features(path: Path) -> Iterator[Write]:
    """Opens a file of features; yields a function that appends those of a batch."""
    with _disk_errors(path), FEATURE_FORMATS[path.suffix](path) as write:
        yield write


@contextlib.contextmanager
def _open_npz(path: Path) -> Iterator[Write]:
    """Collects the features in memory, and writes arrays `paths` `(n,)` and `features` `(n, d)`."""
    batches = list[OutputBatch]()
    yield lambda batch: batches.append(batch._replace(pixels=batch.pixels[:0]))
    paths = np.array([path for batch in batches for path in batch.paths])
    with open_atomic(path) as file:
        np.savez(file, paths=paths, features=np.concatenate([batch.features for batch in batches]))


@contextlib.contextmanager
def _open_csv(path: Path) -> Iterator[Write]:
    """Writes the columns path, feature_0, feature_1 and so on."""
    with open_atomic(path) as file:

        def write(batch: OutputBatch) -> None:
            if not file.tell():
                names = (f"feature_{i}" for i in range(batch.features.shape[1]))
                _write_text(file, format_csv([("path", *names)]))
            rows = zip(batch.paths, batch.features, strict=True)
            _write_text(file, format_csv((p, *(f"{x:.9g}" for x in row)) for p, row in rows))

        yield write


@contextlib.contextmanager
def _open_parquet(path: Path) -> Iterator[Write]:
    """Writes the columns path (string) and features (fixed-size list of float32)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_atomic(path) as file, contextlib.ExitStack() as stack:
        writer = None

        def write(batch: OutputBatch) -> None:
            nonlocal writer
            column = pa.FixedSizeListArray.from_arrays(
                batch.features.ravel(), batch.features.shape[1]
            )
            paths = [replace_undecodable(path) for path in batch.paths]
            table = pa.table({"path": paths, "features": column})
            writer = writer or stack.enter_context(pq.ParquetWriter(file, table.schema))
            writer.write_table(table)

        yield write


FEATURE_FORMATS = {".npz": _open_npz, ".csv": _open_csv, ".parquet": _open_parquet}


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


def _write_text(file: BinaryIO, text: str) -> None:
    file.write(encode_text(text))


def _disk_errors(path: Path) -> contextlib.AbstractContextManager[None]:
    return disk_errors_as_user_error(f"{path} cannot be written", lambda: "nothing was saved")
