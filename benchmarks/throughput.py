"""`step` and `inference`: all implementations are timed in turn, in several rounds."""

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.compare import TOLERANCE, check_equal
from benchmarks.layers import forward_flops, layers, train_flops
from benchmarks.process import Worker, Workers
from benchmarks.task import Task
from resflax.errors import UserError
from resflax.progress import ProgressMeter

Result = dict[str, Any]


def quartiles(timings: list[dict[str, float]]) -> dict[str, float]:
    """Returns the median and the quartiles of the seconds per call."""
    seconds = [timing["seconds"] / timing["calls"] for timing in timings]
    low, median, high = np.percentile(seconds, (25, 50, 75)).tolist()
    return {"median": median, "quartile_low": low, "quartile_high": high}


def check_platforms(workers: Sequence[Worker]) -> str:
    """Returns the platform of all workers.

    Raises:
      UserError: if the workers run on different platforms.
    """
    platforms = {worker.name: worker.info["platform"] for worker in workers}
    if len(set(platforms.values())) > 1:
        text = ", ".join(f"{name} on {platform}" for name, platform in platforms.items())
        raise UserError(f"the implementations run on different devices ({text}): use --device=cpu")
    return next(iter(platforms.values()))


def start_workers(
    workers: Workers, task: Task, mode: str, names: Sequence[str]
) -> tuple[list[Worker], str, dict[str, dict[str, float]]]:
    """Starts the workers and checks that they compute the same function.

    Returns:
      The workers, their platform, and the differences of their outputs from the first one's.
    """
    started, outputs = [], {}
    with contextlib.closing(ProgressMeter(file=sys.stderr)) as meter:
        for name in names:
            meter.update(0, f"{task.name} {mode}: starting {name}", force=True)
            started.append(workers.start(name, task, mode))
        platform = check_platforms(started)
        for worker in started:
            text = f"{task.name} {mode}: compiling and checking {worker.name}"
            meter.update(0, text, force=True)
            outputs[worker.name] = worker.call("check")
    return started, platform, check_equal(outputs, TOLERANCE[platform, task.dtype])


def time_rounds(
    workers: Sequence[Worker], rounds: int, seconds: float, label: str
) -> dict[str, list[dict[str, float]]]:
    """Warms up all workers, then times each for about `seconds` in every round.

    Only one worker runs at a time.

    Returns:
      By worker, the timing of each round.
    """
    calls = {}
    with contextlib.closing(ProgressMeter(file=sys.stderr)) as meter:
        for worker in workers:
            meter.update(0, f"{label}: warming up {worker.name}", force=True)
            fastest = worker.call("warm_up", seconds=seconds)["fastest"]
            calls[worker.name] = max(1, round(seconds / fastest))
    timings: dict[str, list[dict[str, float]]] = {worker.name: [] for worker in workers}
    with contextlib.closing(ProgressMeter(rounds * len(workers), file=sys.stderr)) as meter:
        for r in range(rounds):
            # The order alternates, so that no worker always follows the same one.
            for worker in workers if r % 2 == 0 else workers[::-1]:
                text = f"{label}: round {r + 1} of {rounds}, {worker.name}"
                meter.update(0, text)
                if calls[worker.name] > 1:  # an untimed call refills the caches
                    worker.call("time_calls", calls=1)
                timings[worker.name].append(worker.call("time_calls", calls=calls[worker.name]))
                meter.update(1, text)
    return timings


def _results(
    workers: Sequence[Worker], timings: dict[str, Any], task: Task, flops: int, gemm_rate: float
) -> dict[str, Result]:
    results = {}
    for worker in workers:
        seconds = quartiles(timings[worker.name])
        rate = task.batch / seconds["median"]
        results[worker.name] = {
            "library": worker.info["library"],
            "seconds": seconds,
            "images_per_second": rate,
            "utilization": flops * rate / gemm_rate,
            **worker.call("memory"),
            "timings": timings[worker.name],
        }
    return results


def measure(task: Task, mode: str, names: Sequence[str], rounds: int, seconds: float) -> Result:
    """Checks the implementations and times them together with the GEMM.

    Args:
      task: network and batch.
      mode: "step" or "inference".
      names: keys of `IMPLEMENTATIONS`.
      rounds: number of rounds.
      seconds: approximate duration of one implementation's part of a round.
    """
    with Workers() as opened:
        workers, platform, differences = start_workers(opened, task, mode, names)
        for worker in workers:
            worker.call("reset_peak_memory")
        gemm = opened.start("gemm", task, mode="step")
        timings = time_rounds([*workers, gemm], rounds, seconds, f"{task.name} {mode}")
        gemm_seconds = quartiles(timings["gemm"])
        gemm_rate = 2 * gemm.info["side"] ** 3 / gemm_seconds["median"]
        network = layers(task.spec, task.sides, task.channels)
        flops = train_flops(network) if mode == "step" else forward_flops(network)
        results = _results(workers, timings, task, flops, gemm_rate)
    for name, result in results.items():
        result["differences"] = differences[name]
    return {
        "platform": platform,
        "flops_per_image": flops,
        "gemm": {
            **gemm.info,
            "seconds": gemm_seconds,
            "flops_per_second": gemm_rate,
            "timings": timings["gemm"],
        },
        "implementations": results,
    }
