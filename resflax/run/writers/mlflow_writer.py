"""MLflow: a run of the experiment of `MLFLOW_EXPERIMENT_NAME`, at `MLFLOW_TRACKING_URI`."""

from collections.abc import Mapping, Sequence
from typing import Any

import mlflow
import numpy as np

from resflax.files import write_atomic
from resflax.run.metric_writer import Row, WriterStart

MAX_PARAM_LENGTH = 500  # characters of a parameter's value that every store of MLflow takes


class MlflowWriter:
    """Writes a run of MLflow; see `MetricWriter`. MLflow has no histograms.

    The run's id is in `mlflow_run_id.txt`, with which a resumed run continues it. MLflow cannot
    remove metrics: steps that it has already are not written again.
    """

    def __init__(self, start: WriterStart) -> None:
        file = start.workdir / "mlflow_run_id.txt"
        known = file.read_text().strip() if start.step and file.exists() else None
        self._run = mlflow.start_run(run_id=known, run_name=None if known else start.workdir.name)
        self._id = self._run.info.run_id
        self._last: dict[str, int] = {}
        if known:
            client = mlflow.MlflowClient()
            for name in client.get_run(known).data.metrics:
                split, _, key = name.rpartition("/")
                if key == "epoch":  # that of every record
                    history = client.get_metric_history(known, name)
                    self._last[split] = max(metric.step for metric in history)
        write_atomic(file, self._id.encode())

    def write_scalars(self, step: int, split: str, scalars: Mapping[str, float]) -> None:
        """See `MetricWriter`."""
        if step > self._last.get(split, -1):
            named = {f"{split}/{key}": float(value) for key, value in scalars.items()}
            mlflow.log_metrics(named, step=step, run_id=self._id)

    def write_images(self, step: int, name: str, images: Any) -> None:
        """Writes each image as an artifact."""
        for k, image in enumerate(images):
            mlflow.log_image(image, f"{name}/{step}_{k}.png")

    def write_histograms(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes nothing."""

    def write_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """See `MetricWriter`."""
        mlflow.log_params({key: str(value)[:MAX_PARAM_LENGTH] for key, value in values.items()})

    def write_table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        """Writes a table as the artifact `name.json`."""
        columns = list(rows[0]) if rows else []
        mlflow.log_dict(
            {"columns": columns, "data": [[row.get(key) for key in columns] for row in rows]},
            f"{name}.json",
        )

    def close(self) -> None:
        """See `MetricWriter`."""
        mlflow.end_run()
