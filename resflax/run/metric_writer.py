"""Metrics of a run in other formats than `metrics.jsonl`: the interface and a table of writers."""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import UInt8

from resflax.errors import UserError, unknown

# A record or a row of a table; values that are not numbers are not scalars.
Row = Mapping[str, Any]


class MetricWriter(Protocol):
    """Writes the metrics of one run, in the main process only.

    `metrics.jsonl` is written without it, and is what a resumed run is checked against.
    """

    def write_scalars(self, step: int, split: str, scalars: Mapping[str, float]) -> None:
        """Writes the numbers of a record; `split` is "train", "validation" or "test"."""
        ...

    def write_images(
        self, step: int, name: str, images: UInt8[np.ndarray, "n height width channels"]
    ) -> None:
        """Writes images, gray or RGB."""
        ...

    def write_histograms(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes the distribution of the values of each array."""
        ...

    def write_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Writes the config of a new run, JSON values by their dotted keys."""
        ...

    def write_table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        """Writes a table; the first row has all columns."""
        ...

    def close(self) -> None:
        """Writes everything to disk and closes the files."""
        ...


class WriterStart(NamedTuple):
    """Where a run starts or resumes: the argument of every row of `WRITERS`.

    Attributes:
      workdir: directory of the run.
      step: first step of which records will be written. What a writer has of this step and of later
        ones must be removed: training writes it again, with the same values.
      records: the records of `metrics.jsonl` that the run resumes after; [] for a new run.
    """

    workdir: Path
    step: int = 0
    records: Sequence[dict[str, Any]] = ()


class WriterRow(NamedTuple):
    """A row of `WRITERS`.

    Attributes:
      make: "module:class", called with a `WriterStart`.
      package: package that it needs; "" for none.
      extra: optional extra of resflax that installs it.
      has_histograms: whether it writes histograms.
    """

    make: str
    package: str = ""
    extra: str = ""
    has_histograms: bool = True


WRITERS: dict[str, WriterRow] = {
    "csv": WriterRow("resflax.run.writers.csv_writer:CsvWriter", has_histograms=False),
    "tensorboard": WriterRow(
        "resflax.run.writers.tensorboard_writer:TensorBoardWriter", "tensorboardX", "tensorboard"
    ),
    "wandb": WriterRow("resflax.run.writers.wandb_writer:WandbWriter", "wandb", "wandb"),
    "mlflow": WriterRow(
        "resflax.run.writers.mlflow_writer:MlflowWriter", "mlflow", "mlflow", has_histograms=False
    ),
}


def parse_writers(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """Returns the names of writers that a config gives, as a text with commas or a list.

    >>> parse_writers("tensorboard, csv"), parse_writers(("csv",)), parse_writers(None)
    (('tensorboard', 'csv'), ('csv',), ())
    """
    names = value.split(",") if isinstance(value, str) else value or ()
    return tuple(str(name).strip() for name in names if str(name).strip())


def check_writers(names: Sequence[str]) -> None:
    """Raises `UserError` if a name is unknown or given twice, or its package is not installed."""
    for k, name in enumerate(names):
        if name not in WRITERS:
            raise unknown("config.log_to", name, WRITERS)
        if name in names[:k]:
            raise UserError(f"config.log_to has {name!r} twice: expected each name once")
        row = WRITERS[name]
        if row.package and importlib.util.find_spec(row.package) is None:
            raise UserError(
                f"config.log_to has {name!r}, which needs {row.package}:"
                f' pip install "resflax[{row.extra}]"'
            )


def open_writers(names: Sequence[str], start: WriterStart) -> list[MetricWriter]:
    """Imports and opens writers by name.

    Raises:
      UserError: see `check_writers`; if a package cannot start, such as without its server.
      OSError: if a file cannot be written.
    """
    check_writers(names)
    writers: list[MetricWriter] = []
    for name in names:
        module, attribute = WRITERS[name].make.split(":")
        make = getattr(importlib.import_module(module), attribute)
        try:
            writers.append(make(start))
        except Exception as e:  # each package has errors of its own
            for writer in writers:
                writer.close()
            if isinstance(e, UserError) or getattr(e, "filename", None):  # of a file
                raise
            reason = str(e).splitlines()[0] if str(e) else type(e).__name__
            raise UserError(f"config.log_to has {name!r}, which cannot start: {reason}") from e
    return writers


def scalars_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of a record, without the step; those of members by their index.

    >>> scalars_of({"step": 2, "split": "test", "loss": 0.5, "members": {"loss": [0.4, None]}})
    {'loss': 0.5, 'loss/member0': 0.4}
    """
    scalars: dict[str, float] = {}
    for key, value in record.items():
        if key == "members":
            for name, values in value.items():
                named = {f"{name}/member{k}": v for k, v in enumerate(values)}
                scalars |= {member: v for member, v in named.items() if v is not None}
        elif key != "step" and isinstance(value, int | float):
            scalars[key] = value
    return scalars
