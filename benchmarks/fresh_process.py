"""`compile` and `memory`: every measurement runs in a fresh process."""

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.process import Workers
from benchmarks.task import Task
from resflax.progress import ProgressMeter

MEMORY_STEPS = 3
Result = dict[str, Any]


def _medians(runs: list[Result]) -> dict[str, float]:
    return {
        key: float(np.median([run[key] for run in runs]))
        for key, value in runs[0].items()
        if isinstance(value, int | float)
    }


def _compile(name: str, task: Task) -> Result:
    with Workers() as workers:
        worker = workers.start(name, task, "step", no_caches=True)
        return {"library": worker.info["library"], **worker.call("compile")}


def _memory(name: str, task: Task) -> Result:
    with Workers() as workers:
        worker = workers.start(name, task, "step")
        imported_bytes = worker.call("memory")["peak_resident_bytes"]
        compiled = worker.call("compile")
        compiled_bytes = worker.call("memory")["peak_resident_bytes"]
        worker.call("reset_peak_memory")
        worker.call("time_calls", calls=MEMORY_STEPS)
        return {
            "library": worker.info["library"],
            "imported_bytes": imported_bytes,
            "compiled_bytes": compiled_bytes,
            **worker.call("memory"),
            **{key: value for key, value in compiled.items() if key.endswith("_bytes")},
        }


FRESH_PROCESS_BENCHMARKS = {"compile": _compile, "memory": _memory}


def measure(task: Task, command: str, names: Sequence[str], rounds: int) -> Result:
    """Measures each implementation `rounds` times, in turn; returns medians and all values."""
    runs: dict[str, list[Result]] = {name: [] for name in names}
    with contextlib.closing(ProgressMeter(rounds * len(names), file=sys.stderr)) as meter:
        for r in range(rounds):
            for name in names:
                text = f"{task.name} {command}: round {r + 1} of {rounds}, {name}"
                meter.update(0, text, force=True)
                runs[name].append(FRESH_PROCESS_BENCHMARKS[command](name, task))
                meter.update(1, text)
    return {
        "implementations": {
            name: {"library": values[0]["library"], **_medians(values), "runs": values}
            for name, values in runs.items()
        }
    }
