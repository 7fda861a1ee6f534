"""Trains a recipe with resflax and with PyTorch from several seeds: accuracy and time per epoch.

    python -m benchmarks.trainers --seeds=5 --config=configs/cifar10_fast.py --config.epochs=3

All other arguments are those of `train.py`. Each seed is a run of `train.py` and one of
`benchmarks.torch_trainer`, one after another in an order that alternates, with the same initial
weights. Both time training alone: without compilation, evaluation and reading the data.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.cli import check_json_path, run, write_json
from benchmarks.machine import describe, machine
from benchmarks.report import table
from benchmarks.task import check_integer
from resflax.errors import Parser, UserError
from resflax.files import path_type

TRAINERS = {"resflax": ["train.py"], "torch": ["-m", "benchmarks.torch_trainer"]}
ROOT = Path(__file__).parents[1]


def train(trainer: str, arguments: list[str], workdir: Path) -> dict[str, Any]:
    """Trains once in a fresh process; returns the run's results.

    Raises:
      UserError: if the run fails.
    """
    command = [sys.executable, *TRAINERS[trainer], *arguments, f"--workdir={workdir}"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if process.returncode:
        last = (process.stderr.strip() or "no message").splitlines()[-1]
        raise UserError(f"{' '.join(command[1:])} failed: {last}")
    results: dict[str, Any] = json.loads((workdir / "results.json").read_text())
    return results


def summarize(values: list[float]) -> tuple[float, float]:
    """Returns mean and standard error of the mean.

    >>> summarize([1.0, 3.0])
    (2.0, 1.0)
    """
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


def measure(args: argparse.Namespace, arguments: list[str]) -> dict[str, dict[str, list[float]]]:
    """Returns accuracy and speed of each seed, by trainer."""
    values: dict[str, dict[str, list[float]]] = {
        name: {"test_accuracy": [], "examples_per_second": []} for name in TRAINERS
    }
    for seed in range(args.seeds):
        names = sorted(TRAINERS, reverse=bool(seed % 2))
        for name in names:
            workdir = args.out / f"{name}-{seed}"
            results = train(name, [*arguments, f"--config.seed={seed}"], workdir)
            for key, found in values[name].items():
                found.append(float(results[key]))
            print(f"seed {seed}, {name}: test accuracy {results['test_accuracy']:.4f}", flush=True)
    return values


def _parse_args(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = Parser(
        prog="python -m benchmarks.trainers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--seeds", type=int, default=5, help="number of seeds; default: %(default)s")
    text = "folder of the workdirs, which must not exist; default: %(default)s"
    add("--out", type=path_type, default=Path("runs/trainers"), metavar="DIR", help=text)
    add("--json", type=path_type, metavar="PATH", help="write the results to this file")
    args, arguments = parser.parse_known_args(argv)
    check_integer("--seeds", args.seeds, 1000)
    check_json_path(args.json)
    args.out = Path(args.out).absolute()
    if args.out.exists():
        raise UserError(f"--out: {args.out} exists: expected a new folder")
    if wrong := [a for a in arguments if a.startswith(("--workdir", "--config.seed"))]:
        raise UserError(f"{wrong[0]} is chosen for each run: leave it out")
    return args, arguments


def main(argv: list[str]) -> None:
    """Trains all seeds and prints a table."""
    args, arguments = _parse_args(argv)
    values, info = measure(args, arguments), machine()
    print(f"\n{describe(info)}\n")
    rows = []
    for name, found in values.items():
        accuracy, error = summarize(found["test_accuracy"])
        speed = statistics.median(found["examples_per_second"])
        rows.append([name, f"{accuracy:.4f}", f"{error:.4f}", f"{speed:,.0f}"])
    print(table(["trainer", "test accuracy", "standard error", "examples/s"], rows))
    speeds = (values[name]["examples_per_second"] for name in ("torch", "resflax"))
    ratios = [theirs / ours for theirs, ours in zip(*speeds, strict=True)]
    print(f"\ntime per epoch, resflax over torch: {statistics.median(ratios):.3f}")
    if args.json:
        write_json(args.json, argv, info, values)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], main))
