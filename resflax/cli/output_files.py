"""Files of predictions (.csv, .jsonl, .parquet) and of features (.npz, .csv, .parquet).

A file appears under its name when it is complete; until then its name ends in ".part".
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from resflax.cli.image_outputs import ImageUncertainty, OutputBatch, Prediction
from resflax.files import (
    disk_errors_as_user_error,
    encode_text,
    format_csv,
    open_atomic,
    replace_undecodable,
)

COLUMNS = ("path", "rank", "label", "class", "probability")
# Further columns of an ensemble: its uncertainty about the image.
ENSEMBLE_COLUMNS = ImageUncertainty._fields
Write = Callable[[OutputBatch], None]


def encode_csv(
    path: str, predictions: Sequence[Prediction], uncertainty: ImageUncertainty | None = None
) -> str:
    r"""Returns one CSV row per prediction; those of an ensemble end with its uncertainty.

    >>> encode_csv("a.png", [Prediction(1, 7, "cat, tabby", 0.75)])
    'a.png,1,7,"cat, tabby",0.75\n'
    """
    more = (f"{uncertainty[0]:.9g}", *uncertainty[1:]) if uncertainty else ()
    return format_csv((path, *p[:3], f"{p.probability:.9g}", *more) for p in predictions)


def encode_json(
    path: str, predictions: Sequence[Prediction], uncertainty: ImageUncertainty | None = None
) -> str:
    """Returns one JSON object per image, on one line.

    >>> encode_json("a.png", [Prediction(1, 7, "cat", 0.75)])[:61]
    '{"path": "a.png", "predictions": [{"rank": 1, "label": 7, "cl'
    """
    objects = [dict(zip(COLUMNS[1:], prediction, strict=True)) for prediction in predictions]
    more = uncertainty._asdict() if uncertainty else {}
    return json.dumps({"path": path, "predictions": objects, **more}) + "\n"


@contextlib.contextmanager
def _open_text(path: Path, header: str, encode: Callable[..., str]) -> Iterator[Write]:
    """Writes a header, and the text of each image."""
    with open_atomic(path) as file:
        _write_text(file, header)

        def write(batch: OutputBatch) -> None:
            for row in zip(batch.paths, batch.predictions, batch.uncertainties, strict=True):
                _write_text(file, encode(*row))

        yield write


@contextlib.contextmanager
def _open_csv_predictions(path: Path, is_ensemble: bool) -> Iterator[Write]:
    columns = (*COLUMNS, *ENSEMBLE_COLUMNS) if is_ensemble else COLUMNS
    with _open_text(path, ",".join(columns) + "\n", encode_csv) as write:
        yield write


@contextlib.contextmanager
def _open_json_predictions(path: Path, is_ensemble: bool) -> Iterator[Write]:
    del is_ensemble
    with _open_text(path, "", encode_json) as write:
        yield write


@contextlib.contextmanager
def _open_parquet_predictions(path: Path, is_ensemble: bool) -> Iterator[Write]:
    """Writes the columns of the CSV, one row per prediction."""
    columns = (*COLUMNS, *ENSEMBLE_COLUMNS) if is_ensemble else COLUMNS

    def rows(batch: OutputBatch) -> dict[str, list[object]]:
        images = zip(batch.paths, batch.predictions, batch.uncertainties, strict=True)
        values = [
            (replace_undecodable(image), *prediction, *(uncertainty or ()))
            for image, predictions, uncertainty in images
            for prediction in predictions
        ]
        return dict(zip(columns, map(list, zip(*values, strict=True)), strict=True))

    with _open_parquet_table(path) as write_table:
        yield lambda batch: write_table(rows(batch))


# By suffix: a function of the path and whether the predictions are those of an ensemble.
PREDICTION_FORMATS: dict[str, Callable[[Path, bool], contextlib.AbstractContextManager[Write]]] = {
    ".csv": _open_csv_predictions,
    ".jsonl": _open_json_predictions,
    ".parquet": _open_parquet_predictions,
}


@contextlib.contextmanager
def open_predictions(path: Path, *, is_ensemble: bool = False) -> Iterator[Write]:
    """Opens a file of predictions; yields a function that appends those of a batch."""
    with _disk_errors(path), PREDICTION_FORMATS[path.suffix](path, is_ensemble) as write:
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

    def columns(batch: OutputBatch) -> dict[str, object]:
        features = pa.FixedSizeListArray.from_arrays(
            batch.features.ravel(), batch.features.shape[1]
        )
        return {"path": [replace_undecodable(path) for path in batch.paths], "features": features}

    with _open_parquet_table(path) as write_table:
        yield lambda batch: write_table(columns(batch))


@contextlib.contextmanager
def _open_parquet_table(path: Path) -> Iterator[Callable[[Mapping[str, object]], None]]:
    """Yields a function that appends rows, given as columns by name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_atomic(path) as file, contextlib.ExitStack() as stack:
        writer = None

        def write(columns: Mapping[str, object]) -> None:
            nonlocal writer
            table = pa.table(columns)
            writer = writer or stack.enter_context(pq.ParquetWriter(file, table.schema))
            writer.write_table(table)

        yield write


FEATURE_FORMATS = {".npz": _open_npz, ".csv": _open_csv, ".parquet": _open_parquet}


def _write_text(file: BinaryIO, text: str) -> None:
    file.write(encode_text(text))


def _disk_errors(path: Path) -> contextlib.AbstractContextManager[None]:
    return disk_errors_as_user_error(f"{path} cannot be written", lambda: "nothing was saved")
