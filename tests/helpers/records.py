"""Records of a run, as its `metrics.jsonl` and its TensorBoard files have them."""

import json

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from resflax.train.results import MEASURED


def read_records(workdir, split=""):
    """Returns the records of a split; "" is all."""
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if split in ("", record["split"])]


def read_reproducible(workdir):
    """Returns the records without the values that differ between two equal runs."""
    records = read_records(workdir)
    return [{k: v for k, v in record.items() if k not in MEASURED} for record in records]


def read_events(workdir):
    """Returns what TensorBoard reads from the event files of a run, all images and histograms."""
    return EventAccumulator(str(workdir / "tensorboard"), {"images": 0, "histograms": 0}).Reload()
