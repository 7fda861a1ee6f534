"""`step` and `inference`: bursts of all contenders in turn, round after round."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.compare import TOLERANCE, check_equal
from benchmarks.layers import forward_flops, layers, train_flops
from benchmarks.process import Worker, Workers
from benchmarks.progress import Progress
from benchmarks.task import Task
from resflax.errors import UserError

Result = dict[str, Any]


def summary(timings: list[dict[str, float]]) -> dict[str, float]:
    """Median and quartiles of the seconds of one call."""
    each = [timing["seconds"] / timing["calls"] for timing in timings]
    low, median, high = np.percentile(each, (25, 50, 75)).tolist()
    return {"median": median, "quartile_low": low, "quartile_high": high}


def check_platforms(workers: Sequence[Worker]) -> str:
    """The platform that all of them run on.

    Raises:
      UserError: if they do not run on one.
    """
    platforms = {worker.name: worker.about["platform"] for worker in workers}
    if len(set(platforms.values())) > 1:
        text = ", ".join(f"{name} on {where}" for name, where in platforms.items())
        raise UserError(f"the contenders are not on one device: {text}; try --device=cpu")
    return next(iter(platforms.values()))


def play_rounds(
    workers: Sequence[Worker], rounds: int, seconds: float, say: Progress, label: str
) -> dict[str, list[dict[str, float]]]:
    """Warms up, then every worker's bursts of about `seconds` each; all others wait meanwhile."""
    calls = {}
    for worker in workers:
        say.say(f"{label}: warming up {worker.name}")
        fastest = worker.ask("warm", seconds=seconds)["fastest"]
        calls[worker.name] = max(1, round(seconds / fastest))
    timings: dict[str, list[dict[str, float]]] = {worker.name: [] for worker in workers}
    began = time.monotonic()
    for r in range(rounds):
        # There and back again: nobody always runs behind the same neighbour.
        for i, worker in enumerate(workers if r % 2 == 0 else workers[::-1]):
            done = r + i / len(workers)
            left = (time.monotonic() - began) / done * (rounds - done) if done else None
            text = f"{label}: round {r + 1} of {rounds}, {worker.name}"
            say.say(text, left=left, stage=not r and not i)
            if calls[worker.name] > 1:  # caches and threads are the last contender's: not timed
                worker.ask("burst", calls=1)
            timings[worker.name].append(worker.ask("burst", calls=calls[worker.name]))
    return timings


def _results(
    workers: Sequence[Worker], timings: dict[str, Any], task: Task, flops: int, roof: float
) -> dict[str, Result]:
    results = {}
    for worker in workers:
        times = summary(timings[worker.name])
        rate = task.batch / times["median"]
        results[worker.name] = {
            "library": worker.about["library"],
            "seconds": times,
            "images_per_second": rate,
            "utilisation": flops * rate / roof,
            **worker.ask("memory"),
            "timings": timings[worker.name],
        }
    return results


def measure(
    task: Task, mode: str, contenders: Sequence[str], rounds: int, seconds: float, say: Progress
) -> Result:
    """One task, step or inference: checked, warmed up, and timed in turn with the GEMM."""
    label = f"{task.name} {mode}"
    with Workers() as opened:
        workers = []
        for name in contenders:
            say.say(f"{label}: starting {name}")
            workers.append(opened.add(name, task, mode))
        platform = check_platforms(workers)
        answers = {}
        for worker in workers:
            say.say(f"{label}: compiling and checking {worker.name}")
            answers[worker.name] = worker.ask("check")
        differences = check_equal(answers, TOLERANCE[platform, task.dtype])
        for worker in workers:
            worker.ask("reset")
        gemm = opened.add("gemm", task, mode="step")
        timings = play_rounds([*workers, gemm], rounds, seconds, say, label)
        product = summary(timings["gemm"])
        roof = 2 * gemm.about["side"] ** 3 / product["median"]
        rows = layers(task.spec, task.size, task.channels)
        flops = train_flops(rows) if mode == "step" else forward_flops(rows)
        results = _results(workers, timings, task, flops, roof)
    for name, result in results.items():
        result["differences"] = differences[name]
    return {
        "platform": platform,
        "flops_per_image": flops,
        "gemm": {
            **gemm.about,
            "seconds": product,
            "flops_per_second": roof,
            "timings": timings["gemm"],
        },
        "contenders": results,
    }
