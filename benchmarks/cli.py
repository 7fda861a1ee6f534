"""The command line: everything is looked up and checked before anything runs."""

import argparse
import dataclasses
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import costs, rates, report
from benchmarks.machine import describe, machine
from benchmarks.peers import CONTENDERS
from benchmarks.progress import Progress
from benchmarks.task import DEVICES, DTYPES, LARGEST_BATCH, Task, check_choice, parse
from resflax.errors import Parser, UserError, unknown

ABOUT = """Measures resflax beside a plain Flax linen ResNet and a PyTorch one.

  step       training steps: all contenders in turn, after a check that they compute one function
  inference  forward passes, each waited for
  compile    seconds to trace, lower and compile the training step (to the end of the first step
             for PyTorch), each in a fresh process without caches
  memory     peak memory of training
  input      batches of the digits against the step that takes them
"""
NOTES = """models: name[@size][:batch], of any post-activation ResNet of resflax.list_models():
  resnet50                  224x224, batch 16
  resnet18@32:64            at 64x64 or less: the CIFAR stem and ten classes
  cifar_resnet20            32x32, batch 128
peers: torch (eager, channels_last), torch.compile, flax (plain linen), and resflax's own roads
  resflax:cpu, resflax:onednn, resflax:plain (RESFLAX_CONV in their process; resflax: unset).
  resflax itself always runs. The first peer is what the others are compared with.

examples:
  python -m benchmarks step --models=resnet50,resnet18@32,cifar_resnet20 --json=step.json
  python -m benchmarks inference --models=resnet50 --batch=1 --peers=torch.compile,torch
  python -m benchmarks compile --models=cifar_resnet110 --peers=flax
  python -m benchmarks step --models=resnet50 --layers
"""
COMMANDS = ("step", "inference", "compile", "memory", "input")
PEERS = {"compile": "flax", "input": ""}
ROUNDS = {"step": 9, "inference": 9, "compile": 3, "memory": 1, "input": 5}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks",
        description=ABOUT,
        epilog=NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("command", metavar="COMMAND", help=", ".join(COMMANDS))
    add("--models", metavar="A,B", default="cifar_resnet20", help="default: %(default)s")
    add("--peers", metavar="A,B", help="default: torch,flax; for compile: flax")
    add("--batch", type=int, help="for models that do not say theirs; default 1 for inference")
    add("--dtype", default="float32", help=f"{' or '.join(DTYPES)}; PyTorch under autocast")
    add("--device", default="auto", help=f"{', '.join(DEVICES)}; default: %(default)s")
    add("--rounds", type=int, help="default: 9; compile 3, memory 1, input 5")
    add("--seconds", type=float, default=1.0, help="of a burst, about; default: %(default)s")
    add("--json", type=Path, metavar="PATH", help="also write all of it, every timing, here")
    add("--layers", action="store_true", help="print what every layer costs, and stop")
    return parser


def contenders_of(peers: str) -> list[str]:
    """resflax and the peers that are named, each once.

    Raises:
      UserError: if one is unknown, or its library is not installed.
    """
    names = list(dict.fromkeys(["resflax", *filter(None, peers.split(","))]))
    for name in names:
        if name not in CONTENDERS:
            raise unknown("peer", name, CONTENDERS)
        needs = CONTENDERS[name].needs
        if not importlib.util.find_spec(needs):
            raise UserError(
                f"peer {name!r} needs {needs}, which is not installed:"
                f" pip install {needs}, or leave it out, as --peers=flax"
            )
    return names


def _check_numbers(args: argparse.Namespace) -> None:
    if args.batch is not None and not 1 <= args.batch <= LARGEST_BATCH:
        raise UserError(f"--batch is {args.batch}: expected an integer from 1 to {LARGEST_BATCH}")
    if args.rounds is not None and not 1 <= args.rounds <= 10_000:
        raise UserError(f"--rounds is {args.rounds}: expected an integer from 1 to 10000")
    if not 0 < args.seconds <= 600:
        raise UserError(f"--seconds is {args.seconds}: expected a number from 0 to 600")
    if args.json and not args.json.parent.is_dir():
        raise UserError(f"--json: there is no folder {str(args.json.parent)!r}")
    if args.json and args.json.is_dir():
        raise UserError(f"--json: {str(args.json)!r} is a folder: expected a file")


def _tasks(args: argparse.Namespace) -> list[Task]:
    batch = args.batch or (1 if args.command == "inference" else None)
    fields: dict[str, Any] = {"dtype": args.dtype, "device": args.device}
    names = [name for name in args.models.split(",") if name]
    if not names:
        raise UserError("--models is empty: expected names, as --models=resnet50,cifar_resnet20")
    tasks = [parse(name, batch=batch, **fields) for name in names]
    if args.command == "input":  # the digits: 8x8, one channel
        tasks = [task.replace(size=8, channels=1) for task in tasks]
        for task in tasks:
            if task.spec["stem"] != "cifar":
                raise UserError(f"input runs on the digits, too small for {task.model}")
    return tasks


def _measure(task: Task, args: argparse.Namespace, names: list[str], say: Progress) -> dict:
    rounds = args.rounds or ROUNDS[args.command]
    if args.command in costs.COSTS:
        return costs.measure(task, args.command, names, rounds, say)
    if args.command == "input":
        return rates.measure_input(task, rounds, args.seconds, say)
    return rates.measure(task, args.command, names, rounds, args.seconds, say)


def _table(result: dict[str, Any], command: str, peer: str) -> str:
    if command in costs.COSTS:
        return report.costs(result, command)
    return report.inputs(result) if command == "input" else report.rates(result, peer)


def main(argv: list[str]) -> None:
    """Parse, check, measure, tell; the JSON file is whole after every model."""
    args = _parser().parse_args(argv)
    for what, known in (("command", COMMANDS), ("dtype", DTYPES), ("device", DEVICES)):
        check_choice(what, getattr(args, what), known)
    _check_numbers(args)
    tasks = _tasks(args)
    if args.layers:
        print("\n\n".join(report.layer_table(task) for task in tasks))
        return
    peers = args.peers if args.peers is not None else PEERS.get(args.command, "torch,flax")
    names = contenders_of(peers)
    peer = next((name for name in peers.split(",") if name), "resflax")
    about, say, results = machine(), Progress(), []
    print(describe(about), flush=True)
    for task in tasks:
        began = time.monotonic()
        result = _measure(task, args, names, say)
        say.clear()
        print(f"\n{report.heading(task, args.command, result.get('platform', ''))}\n")
        print(_table(result, args.command, peer), flush=True)
        wall = round(time.monotonic() - began, 1)
        results.append({"task": dataclasses.asdict(task), "wall_seconds": wall, **result})
        if args.json:
            everything = {"argv": argv, "compared_with": peer, "machine": about}
            text = json.dumps({**everything, "results": results}, indent=1)
            args.json.write_text(text + "\n")


def run(argv: list[str]) -> int:
    """`main`; a `UserError` becomes one line on stderr and exit status 2."""
    try:
        main(argv)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0
