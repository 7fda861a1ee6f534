"""`metrics.csv`: one row per record, and one file per table."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resflax.files import encode_text, format_csv, write_atomic
from resflax.run.metric_writer import Row, WriterStart, scalars_of


class CsvWriter:
    """Writes `metrics.csv` and tables; see `MetricWriter`.

    On resume the file is written again from the records of `metrics.jsonl`. A record with a new
    column adds it to the file, with empty fields in earlier rows.
    """

    def __init__(self, start: WriterStart) -> None:
        self._path, self._folder = start.workdir / "metrics.csv", start.workdir
        rows = [_row(r["step"], r["split"], scalars_of(r)) for r in start.records]
        self._columns: list[str] = list(dict.fromkeys(key for row in rows for key in row))
        _write_rows(self._path, self._columns, rows)

    def write_scalars(self, step: int, split: str, scalars: Mapping[str, float]) -> None:
        """See `MetricWriter`."""
        row = _row(step, split, scalars)
        new = [key for key in row if key not in self._columns]
        if new:
            self._columns += new
            _write_rows(self._path, self._columns, [*_read_rows(self._path), row])
            return
        with open(self._path, "ab") as file:
            file.write(encode_text(format_csv([[row.get(key, "") for key in self._columns]])))

    def write_images(self, step: int, name: str, images: Any) -> None:
        """Writes nothing."""

    def write_histograms(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes nothing."""

    def write_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Writes nothing: `config.json` has them."""

    def write_table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        """Writes `name.csv`."""
        _write_rows(self._folder / f"{name}.csv", list(rows[0]) if rows else [], rows)

    def close(self) -> None:
        """Does nothing: the file is closed after each row."""


def _row(step: int, split: str, scalars: Mapping[str, float]) -> dict[str, Any]:
    return {"step": step, "split": split, **scalars}


def _read_rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def _write_rows(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    body = [[row.get(key, "") for key in columns] for row in rows]
    write_atomic(path, encode_text(format_csv([columns, *body]) if columns else ""))
