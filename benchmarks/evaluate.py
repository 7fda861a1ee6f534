"""Times `resflax evaluate` against timm's `validate.py` on generated JPEGs.

Both run as commands, in turn, on the same model (random weights in a folder in timm's layout), the
same files, batch size and number of workers. Reported are images per second after the second batch,
so without imports, compilation and the start of workers, and the seconds of the whole command.

    python -m benchmarks.evaluate --model=resnet50 --images=256 --batch=32 --workers=1 --rounds=3
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cli import run
from benchmarks.jpegs import NUM_CLASSES, dataset_stats, write_dataset
from benchmarks.machine import describe, machine
from benchmarks.report import number, table
from benchmarks.report_input import files_caption
from resflax.errors import Parser, UserError

RESFLAX, TIMM, CHANNELS_LAST = "resflax", "timm", "timm, channels_last"
# Largest difference of the mean loss, in nats: both decode and resize with Pillow.
LOSS_TOLERANCE = 1e-4


def save_model(name: str, folder: Path) -> None:
    """Writes a timm model with random weights and ten classes."""
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=NUM_CLASSES)
    timm.models.save_for_hf(model, str(folder), safe_serialization=True)


def command(name: str, model: Path, images: Path, out: Path, args: argparse.Namespace) -> list[str]:
    """Returns the command line of a case."""
    if name == RESFLAX:
        return [
            *("resflax", "evaluate", str(model), f"--dataset=folder:{images}", f"--out={out}"),
            *(f"--batch-size={args.batch}", f"--num-workers={args.workers}"),
        ]
    layout = ["channels_last"] if name == CHANNELS_LAST else []
    numbers = [str(args.batch), str(args.workers)]
    return ["benchmarks.peers.timm_validate", str(model), str(images), *numbers, *layout]


def time_command(arguments: list[str], out: Path) -> dict[str, Any]:
    """Runs a command in a fresh process; returns its results and `command_seconds`."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise UserError(f"{arguments[0]} failed: {done.stderr.strip().splitlines()[-1]}")
    is_resflax = arguments[0] == RESFLAX
    text = (out / "evaluation.json").read_text() if is_resflax else done.stdout.splitlines()[-1]
    values: dict[str, Any] = json.loads(text)
    keys = ("accuracy", "nll", "examples", "examples_per_second")
    return {key: values[key] for key in keys} | {"command_seconds": seconds}


def check_equal(results: dict[str, list[dict[str, Any]]]) -> None:
    """Raises `UserError` if the cases evaluated different networks or images."""
    first = results[RESFLAX][0]
    for name, runs in results.items():
        difference = abs(runs[0]["nll"] - first["nll"])
        if runs[0]["examples"] != first["examples"] or difference > LOSS_TOLERANCE:
            raise UserError(
                f"{name}: loss {runs[0]['nll']} of {runs[0]['examples']} examples, resflax"
                f" {first['nll']} of {first['examples']}"
            )


def report(results: dict[str, list[dict[str, Any]]]) -> str:
    """Formats one row per case, with the speed relative to timm's."""
    medians = {
        name: [
            float(np.median([run[key] for run in runs]))
            for key in ("examples_per_second", "command_seconds")
        ]
        for name, runs in results.items()
    }
    rows = [
        [
            name,
            number(speed),
            f"{speed / medians[TIMM][0]:.2f}",
            number(seconds),
            f"{results[name][0]['accuracy']:.4f}",
            f"{results[name][0]['nll']:.5f}",
        ]
        for name, (speed, seconds) in medians.items()
    ]
    header = ["command", "images/s", "vs timm", "whole command, s", "accuracy", "loss"]
    return table(header, rows)


def main(argv: list[str]) -> None:
    """Measures and prints a table."""
    parser = Parser(
        prog="python -m benchmarks.evaluate", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--model", default="resnet50", help="timm name; default: %(default)s")
    parser.add_argument("--images", type=int, default=256, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    args = parser.parse_args(argv)
    for name in ("batch", "rounds"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} is {getattr(args, name)}: expected 1 or more")
    if args.images <= 2 * args.batch:
        raise UserError(f"--images is {args.images}: expected more than two batches")
    names = (RESFLAX, TIMM, CHANNELS_LAST)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as directory:
        root, model, out = (Path(directory) / name for name in ("images", "model", "out"))
        write_dataset(root, args.images)
        save_model(args.model, model)
        print(describe(machine()))
        print(files_caption(dataset_stats(root)), flush=True)
        for number_of_round in range(args.rounds):
            for name in names[:: 1 if number_of_round % 2 == 0 else -1]:
                arguments = command(name, model, root / "train", out, args)
                results[name].append(time_command(arguments, out))
                print(f"round {number_of_round + 1}, {name}: {results[name][-1]}", file=sys.stderr)
    check_equal(results)
    print(f"\n{args.model}, batch {args.batch}, workers {args.workers}\n\n{report(results)}")


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], main))
