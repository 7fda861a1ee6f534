"""Times training steps that are dispatched many at a time, against one at a time.

    python -m benchmarks.steps_per_call --model=cifar_resnet20 --size=32 --calls=10,100

In one process, the steps of `config.steps_per_call=N` alternate with those of 1, on the same
dataset on the devices; the ratio of their times is below 1 where the dispatch takes time.
"""

import argparse
import statistics
import sys
import time
from typing import Any

import jax
from absl import logging

from benchmarks.cli import check_json_path, run, write_json
from benchmarks.machine import describe, machine
from benchmarks.report import table
from benchmarks.task import check_integer, parse_task
from resflax import tune_malloc
from resflax.errors import Parser, UserError
from resflax.files import path_type


class Steps:
    """The steps of a run with some `config.steps_per_call`."""

    def __init__(self, args: argparse.Namespace, steps_per_call: int) -> None:
        from resflax.train import Trainer, build, default_config

        config = default_config()
        config.model, config.batch_size, config.epochs = args.model, args.batch, 10**6
        config.dataset = f"fake:{args.size}x{args.size}x3:10:{4 * args.batch}"
        config.data.placement, config.steps_per_call = "device", steps_per_call
        trainer = Trainer(build(config))
        self._count = steps_per_call
        self._step_fn = trainer.make_step_fn(0)
        self._state = trainer.engine.put_state(trainer.init())

    def run(self, steps: int) -> float:
        """Takes some steps; returns the seconds."""
        start, metrics = time.perf_counter(), None
        for first in range(0, steps, self._count):
            self._state, metrics = self._step_fn(self._state, min(self._count, steps - first))
        jax.block_until_ready(metrics)
        return time.perf_counter() - start


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the seconds per step one at a time, and the ratios of each other number, by round."""
    variants = {count: Steps(args, count) for count in (1, *args.calls)}
    for steps in variants.values():
        steps.run(args.steps)  # compiles
    seconds: dict[int, list[float]] = {count: [] for count in variants}
    for k in range(args.rounds):
        for count in sorted(variants, reverse=bool(k % 2)):
            seconds[count].append(variants[count].run(args.steps) / args.steps)
    ratios = {
        count: [many / one for many, one in zip(seconds[count], seconds[1], strict=True)]
        for count in args.calls
    }
    return {"step_seconds": statistics.median(seconds[1]), "ratios": ratios}


def _calls(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 2 or max(counts) > 10**6:
        raise UserError(f"--calls is {text!r}: expected numbers of steps from 2, such as 10,100")
    return counts


def _parse_args(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m benchmarks.steps_per_call",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", default="cifar_resnet20", help="default: %(default)s")
    add("--size", type=int, default=32, help="height and width of images; default: %(default)s")
    add("--batch", type=int, default=128, help="default: %(default)s")
    add("--calls", default="10,100", metavar="N,N", help="steps per call; default: %(default)s")
    add("--steps", type=int, default=100, help="steps per part; default: %(default)s")
    add("--rounds", type=int, default=9, help="default: %(default)s")
    add("--json", type=path_type, metavar="PATH", help="write the results to this file")
    args = parser.parse_args(argv)
    for name, most in (("batch", 2**20), ("steps", 10**6), ("rounds", 10**4)):
        check_integer(f"--{name}", getattr(args, name), most)
    args.model, args.calls = parse_task(args.model).model, _calls(args.calls)
    check_json_path(args.json)
    return args


def main(argv: list[str]) -> None:
    """Measures the calls and prints a table."""
    args = _parse_args(argv)
    tune_malloc()
    logging.set_verbosity(logging.ERROR)
    values, info = measure(args), machine()
    print(describe(info))
    print(f"\n## {args.model}@{args.size}:{args.batch}\n")
    rows = []
    for count, ratios in values["ratios"].items():
        low, median, high = (
            statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        )
        rows.append([str(count), f"{median:.4f} ({low:.4f} to {high:.4f})"])
    print(table(["steps per call", "time of a step over that of 1 step per call"], rows))
    print(f"\na step, one per call: {1e3 * values['step_seconds']:.3f} ms")
    if args.json:
        write_json(args.json, argv, info, values)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], main))
