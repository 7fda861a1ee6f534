"""Files with the prediction of every example: CSV or Parquet."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from resflax.data.source import Source
from resflax.errors import UserError, unknown
from resflax.evaluate.assess import Assessment
from resflax.evaluate.classes import LabelMap
from resflax.files import encode_text, format_csv, replace_undecodable, write_atomic

FORMATS = (".csv", ".parquet")
COLUMNS = (
    "index",
    "path",
    "label",
    "prediction",
    "label_probability",
    "prediction_probability",
    "top5",
    "top5_probability",
    "entropy",
)
# Further columns of an ensemble.
ENSEMBLE_COLUMNS = ("expected_entropy", "mutual_information", "disagreement", "pairwise_kl")


def check_predictions_path(path: Path) -> None:
    """Raises `UserError` if it is a folder, the format is unknown or its package is missing."""
    if path.is_dir():
        raise UserError(f"--predictions is {path}, a folder: expected the name of a file")
    if path.suffix not in FORMATS:
        raise unknown("predictions format", path.suffix, FORMATS)
    require_pyarrow("--predictions", path)


def require_pyarrow(flag: str, path: Path) -> None:
    """Raises `UserError` if a file is to be Parquet and pyarrow is missing."""
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as e:
            raise UserError(
                f'{flag} is {path}: .parquet needs pyarrow (pip install "resflax[parquet]"), .csv'
                " does not"
            ) from e


def write_predictions(
    path: Path, assessment: Assessment, source: Source, label_map: LabelMap
) -> None:
    """Writes one row per example that counts: `COLUMNS` and, of an ensemble, `ENSEMBLE_COLUMNS`.

    Classes are indices of the model's classes. `path` is the file, or the split and index. The
    entries of `top5` are lists in Parquet, and separated by spaces in a CSV.
    """
    evaluated, scored = assessment.evaluated, assessment.scored
    scores = scored.scores[0]
    columns: dict[str, Any] = {
        "index": evaluated.indices,
        "path": [source.location(int(i)) for i in evaluated.indices],
        "label": label_map.columns[scores.label],
        "prediction": label_map.columns[scores.prediction],
        "label_probability": np.exp(scores.label_log_probability),
        "prediction_probability": scores.confidence,
        "top5": label_map.columns[scores.top],
        "top5_probability": scores.top_probability,
        "entropy": scored.uncertainty.total_entropy,
    }
    if len(assessment.targets.systems) > 1:
        columns |= {name: getattr(scored.uncertainty, name) for name in ENSEMBLE_COLUMNS}
    values = {name: np.asarray(column).tolist() for name, column in columns.items()}
    write_atomic(path, _to_csv(values) if path.suffix == ".csv" else _to_parquet(values))


def _to_csv(columns: dict[str, list[Any]]) -> bytes:
    rows = (
        [" ".join(map(str, value)) if isinstance(value, list) else value for value in row]
        for row in zip(*columns.values(), strict=True)
    )
    return encode_text(format_csv([columns, *rows]))


def _to_parquet(columns: dict[str, list[Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = columns | {"path": [replace_undecodable(path) for path in columns["path"]]}
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()
