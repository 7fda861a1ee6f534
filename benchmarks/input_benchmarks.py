"""`decode`, `loader` and `input`: cases of the input pipeline are timed in turn.

A data loader prefetches, and would use CPU time while other cases are timed. So the worker
processes of a case run only while it is timed, and prefetched batches are consumed first.
"""

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.jpegs import dataset_stats, write_dataset
from benchmarks.peers import LARGE_IMAGE_CASES, SMALL_IMAGE_CASES
from benchmarks.peers.decoders import OUTPUTS
from benchmarks.process import Worker, Workers
from benchmarks.task import Task
from benchmarks.throughput import Result, quartiles
from resflax.progress import ProgressMeter

NUM_WORKERS = (0, 1, 2)
DECODE_ONLY = "decoding only"


class Case(NamedTuple):
    """A timed case: its name in the results, the worker, and its name in the worker."""

    name: str
    worker: Worker
    case: str


def time_cases(
    cases: Sequence[Case], rounds: int, seconds: float, label: str
) -> dict[str, list[dict[str, Any]]]:
    """Warms up all cases with one call each, then times each for `seconds` in every round.

    Returns:
      By case, the timing of each round.
    """
    with contextlib.closing(ProgressMeter(file=sys.stderr)) as meter:
        for case in cases:
            meter.update(0, f"{label}: warming up {case.name}", force=True)
            case.worker.call("time_case", case=case.case, seconds=0)
    timings: dict[str, list[dict[str, Any]]] = {case.name: [] for case in cases}
    with contextlib.closing(ProgressMeter(rounds * len(cases), file=sys.stderr)) as meter:
        for r in range(rounds):
            # The order alternates, so that no case always follows the same one.
            for case in cases[::-1] if r % 2 == 0 else cases:
                text = f"{label}: round {r + 1} of {rounds}, {case.name}"
                meter.update(0, text)
                timing = case.worker.call("time_case", case=case.case, seconds=seconds)
                timings[case.name].append(timing)
                meter.update(1, text)
    return timings


def summarize(timings: list[dict[str, Any]], images: int) -> Result:
    """Returns the rates of a case whose calls process `images` images each."""
    seconds = quartiles(timings)
    calls = sum(t["calls"] for t in timings)
    cpu = [t["cpu_seconds"] for t in timings]
    cpu_per_image = None if None in cpu else sum(cpu) / calls / images
    return {
        "seconds": seconds,
        "images_per_second": images / seconds["median"],
        "images_per_core_second": 1 / cpu_per_image if cpu_per_image else None,
        "blocked_share": sum(t["blocked_seconds"] for t in timings)
        / sum(t["seconds"] for t in timings),
        "timings": timings,
    }


def overhead(timings: list[dict[str, Any]], baseline: list[dict[str, Any]]) -> list[float]:
    """Returns lower quartile, median and upper quartile of the relative slowdown per round."""
    slowdowns = [
        (t["seconds"] / t["calls"]) / (b["seconds"] / b["calls"]) - 1
        for t, b in zip(timings, baseline, strict=True)
    ]
    low, median, high = np.percentile(slowdowns, (25, 50, 75)).tolist()
    return [low, median, high]


@contextlib.contextmanager
def _jpeg_dataset(count: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Writes JPEGs to a temporary directory; returns the dataset's name and statistics."""
    with tempfile.TemporaryDirectory() as directory:
        print(f"writing {count} JPEGs", file=sys.stderr, flush=True)
        yield write_dataset(Path(directory), count), dataset_stats(Path(directory))


def _results(cases: Sequence[Case], timings: dict[str, Any], images: dict[str, int]) -> Result:
    return {
        case.name: {
            "library": case.worker.info["library"],
            **summarize(timings[case.name], images[case.name]),
        }
        for case in cases
    }


def measure_decode(
    task: Task, names: Sequence[str], images: int, rounds: int, seconds: float
) -> Result:
    """Times decoders on whole images and on crops, on one thread."""
    with _jpeg_dataset(images) as (dataset, files), Workers() as workers:
        worker = workers.start("decoders", task.replace(batch=images), "step")
        count = worker.call("set_dataset", dataset=dataset)["images"]
        differences = {name: worker.call("compare", name=name) for name in names}
        keys = [f"{name}/{output}" for name in names for output in OUTPUTS]
        cases = [Case(key, worker, key) for key in keys]
        timings = time_cases(cases, rounds, seconds, "decode")
        results = _results(cases, timings, dict.fromkeys(timings, count))
        return {"files": files, "cases": results, "differences": differences}


def measure_loader(
    task: Task, names: Sequence[str], images: int, rounds: int, seconds: float
) -> Result:
    """Times data loaders with 0, 1 and 2 worker processes, and decoding without a loader."""
    with _jpeg_dataset(images) as (dataset, files), Workers() as workers:
        cases = [Case(DECODE_ONLY, workers.start("decoders", task, "step"), "resflax/whole")]
        for name in names:
            worker = workers.start(f"{name} loader", task, "step")
            cases += [Case(f"{name}, {count}", worker, str(count)) for count in NUM_WORKERS]
        counts = {
            case.name: case.worker.call("set_dataset", dataset=dataset)["images"] for case in cases
        }
        timings = time_cases(cases, rounds, seconds, f"{task.name} loader")
        return {"files": files, "cases": _results(cases, timings, counts)}


def measure_input(
    task: Task, names: Sequence[str], images: int, rounds: int, seconds: float
) -> Result:
    """Times training steps on loaded batches against steps on one fixed batch. Has no peers."""
    large = task.spec["stem"] != "cifar"
    names = LARGE_IMAGE_CASES if large else SMALL_IMAGE_CASES
    no_files: Any = contextlib.nullcontext(("", None))
    with _jpeg_dataset(images) if large else no_files as (dataset, files), Workers() as workers:
        worker = workers.start("input paths", task, "step")
        count = worker.call("set_dataset", dataset=dataset)["images"]
        cases = [Case(name, worker, name) for name in names]
        timings = time_cases(cases, rounds, seconds, f"{task.name} input")
        results = _results(cases, timings, dict.fromkeys(timings, count))
        for name in names:
            results[name]["overhead"] = overhead(timings[name], timings[names[0]])
        return {"platform": worker.info["platform"], "files": files, "cases": results}


INPUT_BENCHMARKS = {"decode": measure_decode, "loader": measure_loader, "input": measure_input}
