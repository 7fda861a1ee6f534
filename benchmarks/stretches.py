"""`decode`, `loader` and `input`: parts of a process in turn, each over a stretch of time.

What reads ahead would work for its next turn in the time of others: so a part's processes live as
long as its turn, and its turn begins when what was read ahead is used up.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.jpegs import about, write_folder
from benchmarks.peers import LARGE_ROADS, SMALL_ROADS
from benchmarks.peers.decoders import WHAT
from benchmarks.process import Worker, Workers
from benchmarks.progress import Progress
from benchmarks.rates import Result, summary
from benchmarks.task import Task

WORKERS = (0, 1, 2)
DECODING = "decoding alone"


class Part(NamedTuple):
    """What is measured: its name in the table, the process, and its name there."""

    name: str
    worker: Worker
    part: str


def play_stretches(
    parts: Sequence[Part], rounds: int, seconds: float, say: Progress, label: str
) -> dict[str, list[dict[str, Any]]]:
    """Every part's stretches of `seconds`, in turn; a first round, of one call, is not kept."""
    timings: dict[str, list[dict[str, Any]]] = {part.name: [] for part in parts}
    began = time.monotonic()
    for r in range(rounds + 1):
        # There and back again: nobody always runs behind the same neighbour.
        for i, part in enumerate(parts if r % 2 == 0 else parts[::-1]):
            done = r - 1 + i / len(parts)
            left = (time.monotonic() - began) / done * (rounds - done) if done > 0 else None
            turn = f"round {r} of {rounds}" if r else "warming up"
            say.say(f"{label}: {turn}, {part.name}", left=left, stage=not r and not i)
            found = part.worker.ask("stretch", part=part.part, seconds=seconds if r else 0)
            if r:
                timings[part.name].append(found)
            else:
                began = time.monotonic()
    return timings


def result_of(timings: list[dict[str, Any]], images: int) -> Result:
    """What a table says of a part whose call takes so many images."""
    times = summary(timings)
    calls = sum(t["calls"] for t in timings)
    busy = [t["cpu_seconds"] for t in timings]
    cpu = None if None in busy else sum(busy) / calls / images
    return {
        "seconds": times,
        "images_per_second": images / times["median"],
        "images_per_core_second": 1 / cpu if cpu else None,
        "blocked_share": sum(t["blocked_seconds"] for t in timings)
        / sum(t["seconds"] for t in timings),
        "timings": timings,
    }


def cost(timings: list[dict[str, Any]], base: list[dict[str, Any]]) -> list[float]:
    """How much longer a call takes than one of the base: quartiles and median over the rounds."""
    ratios = [
        (t["seconds"] / t["calls"]) / (b["seconds"] / b["calls"]) - 1
        for t, b in zip(timings, base, strict=True)
    ]
    low, median, high = np.percentile(ratios, (25, 50, 75)).tolist()
    return [low, median, high]


def _results(parts: Sequence[Part], timings: dict[str, Any], images: dict[str, int]) -> Result:
    return {
        part.name: {
            "library": part.worker.about["library"],
            **result_of(timings[part.name], images[part.name]),
        }
        for part in parts
    }


def measure_decode(
    task: Task, names: Sequence[str], images: int, rounds: int, seconds: float, say: Progress
) -> Result:
    """What decoders take for whole images and for crops, on one thread."""
    with tempfile.TemporaryDirectory() as folder, Workers() as opened:
        say.say(f"writing {images} JPEGs")
        dataset = write_folder(Path(folder), images)
        worker = opened.add("decoders", task.replace(batch=images), "step")
        count = worker.ask("folder", dataset=dataset)["images"]
        differences = {name: worker.ask("compare", name=name) for name in names}
        parts = [
            Part(f"{name}/{what}", worker, f"{name}/{what}") for name in names for what in WHAT
        ]
        timings = play_stretches(parts, rounds, seconds, say, "decode")
        found = _results(parts, timings, dict.fromkeys(timings, count))
        return {"files": about(Path(folder)), "contenders": found, "differences": differences}


def measure_loader(
    task: Task, names: Sequence[str], images: int, rounds: int, seconds: float, say: Progress
) -> Result:
    """Batches by 0, 1 and 2 workers, of every loader; and what decoding alone takes."""
    with tempfile.TemporaryDirectory() as folder, Workers() as opened:
        say.say(f"writing {images} JPEGs")
        dataset = write_folder(Path(folder), images)
        decoders = opened.add("decoders", task, "step")
        parts = [Part(DECODING, decoders, "resflax/whole")]
        for name in names:
            worker = opened.add(f"{name}'s loader", task, "step")
            parts += [Part(f"{name}, {count}", worker, str(count)) for count in WORKERS]
        counts = {part.name: part.worker.ask("folder", dataset=dataset)["images"] for part in parts}
        timings = play_stretches(parts, rounds, seconds, say, f"{task.name} loader")
        found = _results(parts, timings, counts)
        return {"files": about(Path(folder)), "contenders": found}


def measure_input(
    task: Task, names: Sequence[str], images: int, rounds: int, seconds: float, say: Progress
) -> Result:
    """What it costs a training step that its batch has to come from somewhere; no peers."""
    large = task.spec["stem"] != "cifar"
    names = LARGE_ROADS if large else SMALL_ROADS
    with tempfile.TemporaryDirectory() as folder, Workers() as opened:
        if large:
            say.say(f"writing {images} JPEGs")
        dataset = write_folder(Path(folder), images) if large else ""
        worker = opened.add("roads", task, "step")
        count = worker.ask("folder", dataset=dataset)["images"]
        parts = [Part(name, worker, name) for name in names]
        timings = play_stretches(parts, rounds, seconds, say, f"{task.name} input")
        found = _results(parts, timings, dict.fromkeys(timings, count))
        for name in names:
            found[name]["cost"] = cost(timings[name], timings[names[0]])
        files = about(Path(folder)) if large else None
        return {"platform": worker.about["platform"], "files": files, "contenders": found}


STRETCHES = {"decode": measure_decode, "loader": measure_loader, "input": measure_input}
