"""TensorBoard event files in `tensorboard/`, by tensorboardX, without TensorFlow."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import hparams, scalar

from resflax.run.metric_writer import Row, WriterStart, scalars_of

# Tags of the values that TensorBoard's page of hyperparameters shows for each run.
COMPARED = ("test/accuracy", "test/loss")


class TensorBoardWriter:
    """Writes TensorBoard event files; see `MetricWriter`.

    A number of a record has the tag `split/key`. A resumed run writes a new file, whose first event
    makes TensorBoard drop what older files have of the steps from `start.step` on.
    """

    def __init__(self, start: WriterStart) -> None:
        folder = start.workdir / "tensorboard"
        is_resumed = folder.exists()
        # The names of files have seconds only, and TensorBoard reads them in their order.
        suffix = f".{time.time_ns():020d}"
        self._writer = SummaryWriter(
            str(folder),
            purge_step=start.step if is_resumed else None,
            filename_suffix=suffix,
        )
        for record in start.records:
            if not is_resumed or record["step"] >= start.step:
                self.write_scalars(record["step"], record["split"], scalars_of(record))

    def write_scalars(self, step: int, split: str, scalars: Mapping[str, float]) -> None:
        """See `MetricWriter`."""
        event = Summary()  # one event for all: most of the cost is that of an event
        for key, value in scalars.items():
            event.MergeFrom(scalar(f"{split}/{key}", value))
        self._writer.file_writer.add_summary(event, step)

    def write_images(self, step: int, name: str, images: Any) -> None:
        """See `MetricWriter`."""
        self._writer.add_images(name, images, step, dataformats="NHWC")

    def write_histograms(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        """See `MetricWriter`."""
        for name, array in arrays.items():
            self._writer.add_histogram(name, array, step)

    def write_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """See `MetricWriter`."""
        plain = {
            key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
            for key, value in values.items()
        }
        experiment, start, _ = hparams(plain, dict.fromkeys(COMPARED, 0.0))
        self._writer.file_writer.add_summary(experiment)
        self._writer.file_writer.add_summary(start)
        self._writer.add_text(
            "config", _markdown([{"key": k, "value": v} for k, v in plain.items()])
        )

    def write_table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        """See `MetricWriter`."""
        self._writer.add_text(name, _markdown(rows), step)

    def close(self) -> None:
        """See `MetricWriter`."""
        self._writer.close()


def _markdown(rows: Sequence[Row]) -> str:
    """Returns a table as Markdown."""
    columns = list(rows[0]) if rows else []
    lines = [columns, ["---"] * len(columns), *([row.get(c, "") for c in columns] for row in rows)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
