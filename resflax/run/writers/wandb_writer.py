"""Weights & Biases: a run of the project "resflax", or of `WANDB_PROJECT`."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import wandb

from resflax.files import write_atomic
from resflax.run.metric_writer import Row, WriterStart

HISTOGRAM_BINS = 64


class WandbWriter:
    """Writes a run of Weights & Biases; see `MetricWriter`.

    The run's id is in `wandb_run_id.txt`, with which a resumed run continues it. Weights & Biases
    refuses steps before the last one, so that steps that training repeats are not written twice.
    """

    def __init__(self, start: WriterStart) -> None:
        file = start.workdir / "wandb_run_id.txt"
        known = file.read_text().strip() if start.step and file.exists() else None
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "resflax"),
            name=start.workdir.name,
            dir=str(start.workdir),
            id=known,
            resume="allow",
        )
        self._next = int(self._run.step) if known else 0
        write_atomic(file, str(self._run.id).encode())

    def write_scalars(self, step: int, split: str, scalars: Mapping[str, float]) -> None:
        """See `MetricWriter`."""
        self._log(step, {f"{split}/{key}": value for key, value in scalars.items()})

    def write_images(self, step: int, name: str, images: Any) -> None:
        """See `MetricWriter`."""
        pixels = [image.squeeze(-1) if image.shape[-1] == 1 else image for image in images]
        self._log(step, {name: [wandb.Image(image) for image in pixels]})

    def write_histograms(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        """See `MetricWriter`."""
        self._log(
            step,
            {name: wandb.Histogram(np_histogram=_bin(array)) for name, array in arrays.items()},
        )

    def write_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """See `MetricWriter`."""
        self._run.config.update(dict(values))

    def write_table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        """See `MetricWriter`."""
        columns = list(rows[0]) if rows else []
        data = [[row.get(key) for key in columns] for row in rows]
        self._log(step, {name: wandb.Table(columns=columns, data=data)})

    def close(self) -> None:
        """See `MetricWriter`."""
        self._run.finish()

    def _log(self, step: int, values: dict[str, Any]) -> None:
        if step >= self._next:
            self._run.log(values, step=step)


def _bin(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns counts and edges of bins of the finite values, in float64.

    In float32, values that are almost equal cannot be divided into bins.
    """
    values = array[np.isfinite(array)].astype(np.float64)
    return np.histogram(values, bins=HISTOGRAM_BINS)
