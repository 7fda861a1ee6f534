"""`ensemble`: one program of several members against their steps one after another.

All contenders take one step of every member per call, and are timed in turn, in several rounds.
Ratios are medians over the rounds of a round's ratio, so that a change of the machine's speed
between rounds does not matter.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks.compare import TOLERANCE, check_equal
from benchmarks.process import Worker, Workers
from benchmarks.report import number, table
from benchmarks.task import Task
from resflax.errors import UserError
from resflax.progress import ProgressMeter

SEPARATE = "separate"
MEMBERS = "1,2,4,8,16"
MODELS = "cifar_resnet8@8:64,cifar_resnet20@32:128,wrn16_4@32:32,resnet18@32:32"
# Every process compiles its own program and holds the memory of a whole run.
MAX_PROCESSES = 8
CHECKED_STEPS = 2
# Cases whose compilation is timed: a single run, and 8 members.
COMPILED = (f"{SEPARATE}:1", "auto:8")
Result = dict[str, Any]


class Contender(NamedTuple):
    """A row of `CONTENDERS`.

    Attributes:
      worker: implementation of the worker process, see `benchmarks.peers.AUXILIARY`.
      method: method of its cases.
      processes: whether each member runs in a separate process.
      baseline: the contender that its ratios are relative to, which then runs too.
    """

    worker: str
    method: str
    processes: bool = False
    baseline: str = "one after another"


# The names of --peers; the first two always run.
CONTENDERS = {
    "one after another": Contender("ensembles", SEPARATE),
    "resflax": Contender("ensembles", "auto"),
    "vmap": Contender("ensembles", "vmap"),
    "map": Contender("ensembles", "map"),
    "processes": Contender("ensembles", SEPARATE, processes=True),
    "torch": Contender("torch ensembles", "vmap"),
    "torch:separate": Contender("torch ensembles", SEPARATE),
    "resflax:cpu": Contender("ensembles:cpu", "auto", baseline="one after another:cpu"),
    "vmap:cpu": Contender("ensembles:cpu", "vmap", baseline="one after another:cpu"),
    "map:cpu": Contender("ensembles:cpu", "map", baseline="one after another:cpu"),
    "one after another:cpu": Contender("ensembles:cpu", SEPARATE, baseline="one after another:cpu"),
}
ALWAYS = ("one after another", "resflax")


def parse_members(text: str) -> list[int]:
    """Parses numbers of members.

    Raises:
      UserError: if one is not an integer from 1 to 1024.
    """
    numbers = text.split(",")
    if not all(n.isdecimal() and 1 <= int(n) <= 1024 for n in numbers):
        raise UserError(f"--members is {text!r}: expected integers from 1 to 1024, as 1,2,4,8")
    return sorted({int(n) for n in numbers})


def _time_call(worker: Worker, case: str, seconds: float) -> Result:
    return worker.call("time_case", case=case, seconds=seconds)


def _time_processes(workers: Sequence[Worker], seconds: float) -> Result:
    """Times the steps of single runs in all workers at the same time."""
    with ThreadPoolExecutor(len(workers)) as pool:
        runs = list(pool.map(lambda w: _time_call(w, f"{SEPARATE}:1", seconds), workers))
    # Their rates add up: the time in which all of them take one step on average.
    rates = [run["calls"] / run["seconds"] for run in runs]
    cpu = [run["cpu_seconds"] / run["calls"] for run in runs if run["cpu_seconds"] is not None]
    return {
        "calls": 1,
        "seconds": len(rates) / sum(rates),
        "cpu_seconds": sum(cpu) if len(cpu) == len(runs) else None,
    }


def _ratio(timings: list[Result], baseline: list[Result], key: str) -> float | None:
    pairs = [
        (t[key] / t["calls"]) / (b[key] / b["calls"])
        for t, b in zip(timings, baseline, strict=True)
        if t[key] is not None and b[key]
    ]
    return float(np.median(pairs)) if pairs else None


class _Session:
    """The workers of one network."""

    def __init__(self, opened: Workers, task: Task, names: Sequence[str]) -> None:
        self.opened, self.task = opened, task
        self.processes: list[Worker] = []
        self.workers: dict[str, Worker] = {}
        names = [n for n in names if not (task.spec["preact"] and n.startswith("torch"))]
        self.names = sorted(
            {*names, *(CONTENDERS[n].baseline for n in names)}, key=list(CONTENDERS).index
        )
        for name in self.names:
            worker = CONTENDERS[name].worker
            if worker not in self.workers:
                self.workers[worker] = opened.start(worker, task, "ensemble", no_caches=True)

    def timers(self, members: int, seconds: float) -> dict[str, Callable[[], Result]]:
        """Returns a function for each contender that times it for about `seconds`."""
        timers: dict[str, Callable[[], Result]] = {}
        for name in self.names:
            contender = CONTENDERS[name]
            worker, case = self.workers[contender.worker], f"{contender.method}:{members}"
            if not contender.processes:
                timers[name] = partial(_time_call, worker, case, seconds)
            elif members <= MAX_PROCESSES:
                while len(self.processes) < members:
                    self.processes.append(self.opened.start("ensembles", self.task, "ensemble"))
                timers[name] = partial(_time_processes, self.processes[:members], seconds)
        return timers

    def check(self, members: int) -> None:
        """Checks that all contenders compute the same losses from the same states."""
        outputs = {}
        for name in self.names:
            contender = CONTENDERS[name]
            if not contender.processes:
                losses = self.workers[contender.worker].call(
                    "member_losses", case=f"{contender.method}:{members}", steps=CHECKED_STEPS
                )
                outputs[name] = {"losses": losses["losses"]}
        platform = self.workers["ensembles"].info["platform"]
        check_equal(outputs, TOLERANCE[platform, self.task.dtype])

    def compile_seconds(self, rounds: int) -> dict[str, float]:
        """Returns the seconds to compile a single run's step and that of 8 members."""
        runs: dict[str, list[float]] = {case: [] for case in COMPILED}
        for _ in range(max(rounds, 2)):  # the first compilation starts the compiler
            for case, seconds in runs.items():
                result = self.workers["ensembles"].call("member_compile", case=case)
                seconds.append(result["seconds"])
        return {case: min(seconds) for case, seconds in runs.items()}


def _time_rounds(
    timers: dict[str, Callable[[], Result]], rounds: int, label: str, meter: ProgressMeter
) -> dict[str, Result]:
    """Times every contender in turn, in several rounds; returns medians and all timings."""
    timings: dict[str, list[Result]] = {name: [] for name in timers}
    for r in range(-1, rounds):  # the first round is not recorded
        for name in list(timers)[:: 1 if r % 2 == 0 else -1]:
            meter.update(0, f"{label}: round {r + 1} of {rounds}, {name}")
            timing = timers[name]()
            if r >= 0:
                timings[name].append(timing)
    return {
        name: {
            "seconds": float(np.median([t["seconds"] / t["calls"] for t in values])),
            "time_ratio": _ratio(values, timings[CONTENDERS[name].baseline], "seconds"),
            "cpu_ratio": _ratio(values, timings[CONTENDERS[name].baseline], "cpu_seconds"),
            "timings": values,
        }
        for name, values in timings.items()
    }


def measure(
    task: Task, names: Sequence[str], members: Sequence[int], rounds: int, seconds: float
) -> Result:
    """Times every contender for each number of members.

    Args:
      task: network and batch of a member.
      names: keys of `CONTENDERS`.
      members: numbers of members.
      rounds: number of rounds.
      seconds: approximate duration of one contender's part of a round.
    """
    sizes: dict[int, dict[str, Result]] = {}
    start, label = time.monotonic(), task.name
    with Workers() as opened, contextlib.closing(ProgressMeter(file=sys.stderr)) as meter:
        meter.update(0, f"{label}: starting", force=True)
        session = _Session(opened, task, names)
        meter.update(0, f"{label}: compiling", force=True)
        compile_seconds = session.compile_seconds(rounds)
        for count in members:
            meter.update(0, f"{label}, {count} members: checking", force=True)
            session.check(count)
            timers = session.timers(count, seconds)
            sizes[count] = _time_rounds(timers, rounds, f"{label}, {count} members", meter)
    return {
        "platform": session.workers["ensembles"].info["platform"],
        "compile_seconds": compile_seconds,
        "members": sizes,
        "measured_seconds": time.monotonic() - start,
    }


def ensemble_table(result: Result) -> str:
    """Formats one row per number of members and contender; ratios are to one after another."""
    rows = [
        [
            f"{members}",
            name,
            number(1e3 * values["seconds"]),
            number(values["time_ratio"]),
            number(values["cpu_ratio"]),
        ]
        for members, contenders in result["members"].items()
        for name, values in contenders.items()
    ]
    one, eight = (result["compile_seconds"][case] for case in COMPILED)
    header = ["members", "implementation", "ms per step of all", "time", "CPU time"]
    caption = (
        f"Compilation: {number(one)} s for one network, {number(eight)} s for 8 members"
        f" ({number(eight / one)} times).\n\nTime and CPU time are relative to one after another,"
        " with the same convolutions."
    )
    return f"{caption}\n\n{table(header, rows)}"
