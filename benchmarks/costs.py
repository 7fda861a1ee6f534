"""`compile` and `memory`: every measurement in a fresh process."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.process import Workers
from benchmarks.progress import Progress
from benchmarks.task import Task

MEMORY_STEPS = 3
Result = dict[str, Any]


def _median(measured: list[dict[str, float]]) -> dict[str, float]:
    return {
        key: float(np.median([m[key] for m in measured]))
        for key, value in measured[0].items()
        if isinstance(value, int | float)
    }


def _compile(name: str, task: Task) -> Result:
    with Workers() as opened:
        worker = opened.add(name, task, "step", fresh=True)
        return {"library": worker.about["library"], **worker.ask("compile")}


def _memory(name: str, task: Task) -> Result:
    with Workers() as opened:
        worker = opened.add(name, task, "step")
        loaded = {"imported_bytes": worker.ask("memory")["peak_resident_bytes"]}
        compiled = worker.ask("compile")
        bytes_ = {key: value for key, value in compiled.items() if key.endswith("_bytes")}
        with_compiler = {"compiled_bytes": worker.ask("memory")["peak_resident_bytes"]}
        worker.ask("reset")
        worker.ask("burst", calls=MEMORY_STEPS)
        about = {"library": worker.about["library"]}
        return {**about, **loaded, **with_compiler, **worker.ask("memory"), **bytes_}


COSTS = {"compile": _compile, "memory": _memory}


def measure(
    task: Task, command: str, contenders: Sequence[str], rounds: int, say: Progress
) -> Result:
    """Each contender in turn, `rounds` times over: medians, and everything that was measured."""
    measured: dict[str, list[Result]] = {name: [] for name in contenders}
    for r in range(rounds):
        for name in contenders:
            say.say(f"{task.name} {command}: round {r + 1} of {rounds}, {name}")
            measured[name].append(COSTS[command](name, task))
    return {
        "contenders": {
            name: {"library": runs[0]["library"], **_median(runs), "runs": runs}
            for name, runs in measured.items()
        }
    }
