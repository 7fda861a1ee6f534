"""Records of a run, as its `metrics.jsonl` has them."""

import json


def read_records(workdir, split=""):
    """Returns the records of a split; "" is all."""
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if split in ("", record["split"])]
