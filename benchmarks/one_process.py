"""Measures one implementation in this process and writes JSON: steps of tools/accelerator.sh.

    python -m benchmarks.one_process network resflax --model=resnet50@224:256 --json=resflax.json
    python -m benchmarks.one_process card --json=card.json
    python -m benchmarks.one_process members vmap,map --members=1,4 --json=members.json

The file is complete after every measurement: it has what was done when the process ends early.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.cli import check_json_path, run
from benchmarks.ensemble import SEPARATE, parse_members
from benchmarks.layers import forward_flops, layers, train_flops
from benchmarks.peers import IMPLEMENTATIONS
from benchmarks.session import CHECKED_STEPS, Session
from benchmarks.task import DEVICES, DTYPES, Task, check_choice, parse_task
from benchmarks.throughput import quartiles
from resflax import tune_malloc
from resflax.errors import Parser
from resflax.files import path_type

ROUNDS = 3
TRACED_CALLS, KEPT_COSTS = 5, 20
Result = dict[str, Any]


class Output:
    """Results that are written to a JSON file whenever one is added."""

    def __init__(self, path: Path) -> None:
        self._path, self._results = path, Result()

    def add(self, name: str, values: Result) -> None:
        """Adds results under a name."""
        self._results[name] = self._results.get(name, {}) | values
        self._path.write_text(json.dumps(self._results, indent=1) + "\n")


def _time(session: Session, seconds: float) -> dict[str, float]:
    """Warms up, then returns the quartiles of the seconds per call over `ROUNDS` rounds."""
    fastest = session.warm_up(seconds)["fastest"]
    calls = max(1, round(seconds / fastest))
    return quartiles([session.time_calls(calls) for _ in range(ROUNDS)])


def measure_card(task: Task, args: argparse.Namespace, output: Output) -> None:
    """Measures the rate of matrix products in the task's dtype, and the bandwidth of the memory."""
    for name in ("gemm", "bandwidth"):
        session = Session()
        info = session.start(name, dataclasses.asdict(task), "step")
        seconds = _time(session, args.seconds)
        work = 2 * info["side"] ** 3 if name == "gemm" else session.model.bytes
        output.add(name, {**info, "seconds": seconds, "per_second": work / seconds["median"]})


def measure_network(task: Task, args: argparse.Namespace, output: Output) -> None:
    """Measures training and inference of an implementation; traces the training step in JAX."""
    name, network = args.name, layers(task.spec, task.sides, task.channels)
    flops = {"step": train_flops(network), "inference": forward_flops(network)}
    for mode in ("step", "inference"):
        session = Session()
        info = session.start(name, dataclasses.asdict(task), mode)
        session.load()
        is_traced = mode == "step" and info["library"].startswith("jax")
        if is_traced:
            output.add(mode, session.compile())
        if mode == "step":
            model = session.model
            losses = [float(model.to_numpy(model.step())) for _ in range(CHECKED_STEPS)]
            output.add(mode, {"losses": losses})
        seconds = _time(session, args.seconds)
        rate = task.batch / seconds["median"]
        speed = {"images_per_second": rate, "flops_per_second": flops[mode] * rate}
        output.add(mode, {**info, "seconds": seconds, **speed, **session.memory()})
        if is_traced:
            output.add(mode, _trace(session.model))


def _trace(model: Any) -> Result:
    """Returns the largest costs of a JAX network's compiled training step."""
    from benchmarks.trace import largest_costs

    program = model.train_step

    def call() -> None:
        model.wait(model.step())

    analysis = program.cost_analysis() or {}
    costs = largest_costs(call, program.as_text(), TRACED_CALLS, KEPT_COSTS)
    return {
        "bytes_accessed": analysis.get("bytes accessed"),
        "largest_costs": [cost._asdict() for cost in costs],
    }


def measure_members(task: Task, args: argparse.Namespace, output: Output) -> None:
    """Measures the training step of all members, by method and number of members."""
    session = Session()
    session.start("ensembles", dataclasses.asdict(task), "ensemble")
    for members in parse_members(args.members):
        for method in args.name.split(","):
            case = f"{method}:{members}"
            session.time_case(case, 0)  # compiles
            session.time_case(case, args.seconds)
            timings = [session.time_case(case, args.seconds) for _ in range(ROUNDS)]
            seconds = quartiles([{k: t[k] or 0.0 for k in ("seconds", "calls")} for t in timings])
            rate = members * task.batch / seconds["median"]
            output.add(case, {"seconds": seconds, "images_per_second": rate})


MEASUREMENTS: dict[str, Callable[[Task, argparse.Namespace, Output], None]] = {
    "card": measure_card,
    "network": measure_network,
    "members": measure_members,
}
NAMES = {
    "card": ("",),
    "network": tuple(IMPLEMENTATIONS),
    "members": (SEPARATE, "vmap", "map"),
}


def main(argv: list[str]) -> None:
    """Runs one measurement."""
    parser = Parser(prog="python -m benchmarks.one_process", allow_abbrev=False)
    add = parser.add_argument
    add("measurement", metavar="WHAT", help=", ".join(MEASUREMENTS))
    add("name", metavar="NAME", nargs="?", default="", help="implementation, or methods A,B")
    add("--model", default="cifar_resnet20", help="name[@size][:batch]; default: %(default)s")
    add("--members", default="1,4,16", help="numbers of members; default: %(default)s")
    add("--dtype", default="float32", help=f"{', '.join(DTYPES)}; default: %(default)s")
    add("--device", default="auto", help=f"{', '.join(DEVICES)}; default: %(default)s")
    add("--seconds", type=float, default=2.0, help="of a round; default: %(default)s")
    add("--json", type=path_type, required=True, metavar="PATH", help="file of the results")
    args = parser.parse_args(argv)
    check_choice("measurement", args.measurement, tuple(MEASUREMENTS))
    for name in args.name.split(","):
        check_choice("name", name, NAMES[args.measurement])
    check_choice("device", args.device, DEVICES)
    check_choice("dtype", args.dtype, DTYPES)
    check_json_path(args.json)
    task = parse_task(args.model, dtype=args.dtype, device=args.device)
    tune_malloc()
    MEASUREMENTS[args.measurement](task, args, Output(args.json))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], main))
