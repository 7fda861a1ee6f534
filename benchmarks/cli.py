"""The command line: everything is looked up and checked before anything runs."""

import argparse
import dataclasses
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import costs, rates, report, report_input
from benchmarks.machine import describe, machine
from benchmarks.peers import CONTENDERS, METERS
from benchmarks.peers.decoders import DECODERS, installed
from benchmarks.progress import Progress
from benchmarks.stretches import STRETCHES
from benchmarks.task import DEVICES, DTYPES, MAX_BATCH, Task, check_choice, parse
from resflax.errors import Parser, UserError, unknown

ABOUT = """Measures resflax beside a plain Flax linen ResNet and a PyTorch one.

  step       training steps: all contenders in turn, after a check that they compute one function
  inference  forward passes, each waited for
  compile    seconds to trace, lower and compile the training step (to the end of the first step
             for PyTorch), each in a fresh process without caches
  memory     peak memory of training
  decode     decoders of JPEGs on one thread, in time and in pixels
  loader     batches of JPEGs by worker processes, beside PyTorch's loader
  input      the trainer's steps on a batch that stays and on batches that come: small images from
             memory, large ones from JPEGs
"""
NOTES = """models: name[@size][:batch], of any post-activation ResNet of resflax.list_models():
  resnet50                  224x224, batch 16
  resnet18@32:64            at 64x64 or less: the CIFAR stem and ten classes
  cifar_resnet20            32x32, batch 128
peers: torch (eager, channels_last), torch.compile, flax (plain linen), and resflax's own roads
  resflax:cpu, resflax:onednn, resflax:xla (RESFLAX_CONV in their process; resflax: unset).
  resflax itself always runs. The first peer is what the others are compared with.
  Of decode they are decoders: simplejpeg, opencv, imagecodecs; pillow, pillow:draft. Of loader:
  torch. input has none.

examples:
  python -m benchmarks step --models=resnet50,resnet18@32,cifar_resnet20 --json=step.json
  python -m benchmarks inference --models=resnet50 --batch=1 --peers=torch.compile,torch
  python -m benchmarks compile --models=cifar_resnet110 --peers=flax
  python -m benchmarks step --models=resnet50 --layers
  python -m benchmarks input --models=cifar_resnet20,resnet50 --seconds=10
"""
COMMANDS = ("step", "inference", "compile", "memory", *STRETCHES)
MODELS = {"decode": "resnet50@224:64", "loader": "resnet50@224:64"}
PEERS = {"compile": "flax", "loader": "torch", "input": ""}
ROUNDS = {
    "step": 9,
    "inference": 9,
    "compile": 3,
    "memory": 1,
    "decode": 5,
    "loader": 5,
    "input": 9,
}
KNOWN = {
    "decode": DECODERS,
    "loader": {"resflax": METERS["resflax's loader"], "torch": METERS["torch's loader"]},
    "input": {"resflax": METERS["roads"]},
}
PACKAGES = {"cv2": "opencv-python-headless"}
SECONDS = {"loader": 3.0, "input": 4.0}


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
    add("--models", metavar="A,B", help="default: cifar_resnet20; decode, loader: resnet50@224:64")
    add("--peers", metavar="A,B", help="default: torch,flax; compile: flax; decode: what is there")
    add("--batch", type=int, help="for models that do not say theirs; default 1 for inference")
    add("--dtype", default="float32", help=f"{' or '.join(DTYPES)}; PyTorch under autocast")
    add("--device", default="auto", help=f"{', '.join(DEVICES)}; default: %(default)s")
    add("--rounds", type=int, help="default: 9; compile 3, memory 1, decode and loader 5")
    add("--seconds", type=float, help="of a burst, about; default: 1; loader 3, input 4")
    add("--images", type=int, default=256, help="JPEGs that are made; default: %(default)s")
    add("--json", type=Path, metavar="PATH", help="also write all of it, every timing, here")
    add("--layers", action="store_true", help="print what every layer costs, and stop")
    return parser


def contenders_of(command: str, peers: str) -> list[str]:
    """resflax and the peers that are named, each once.

    Raises:
      UserError: if one is unknown, or its library is not installed.
    """
    known = {name: row.needs for name, row in KNOWN.get(command, CONTENDERS).items()}
    names = list(dict.fromkeys(["resflax", *filter(None, peers.split(","))]))
    for name in names:
        if name not in known:
            raise unknown("peer", name, known)
        if not importlib.util.find_spec(known[name]):
            raise UserError(
                f"peer {name!r} needs {known[name]}, which is not installed:"
                f" pip install {PACKAGES.get(known[name], known[name])}, or leave it out"
            )
    return names


def _check_numbers(args: argparse.Namespace) -> None:
    if args.batch is not None and not 1 <= args.batch <= MAX_BATCH:
        raise UserError(f"--batch is {args.batch}: expected an integer from 1 to {MAX_BATCH}")
    if args.rounds is not None and not 1 <= args.rounds <= 10_000:
        raise UserError(f"--rounds is {args.rounds}: expected an integer from 1 to 10000")
    if not 1 <= args.images <= 100_000:
        raise UserError(f"--images is {args.images}: expected an integer from 1 to 100000")
    if args.seconds is not None and not 0 < args.seconds <= 600:
        raise UserError(f"--seconds is {args.seconds}: expected a number from 0 to 600")
    if args.json and not args.json.parent.is_dir():
        raise UserError(f"--json: there is no folder {str(args.json.parent)!r}")
    if args.json and args.json.is_dir():
        raise UserError(f"--json: {str(args.json)!r} is a folder: expected a file")


def _tasks(args: argparse.Namespace) -> list[Task]:
    batch = args.batch or (1 if args.command == "inference" else None)
    fields: dict[str, Any] = {"dtype": args.dtype, "device": args.device}
    models = args.models if args.models is not None else MODELS.get(args.command, "cifar_resnet20")
    names = [name for name in models.split(",") if name]
    if not names:
        raise UserError("--models is empty: expected names, as --models=resnet50,cifar_resnet20")
    return [parse(name, batch=batch, **fields) for name in names]


def _measure(task: Task, args: argparse.Namespace, names: list[str], say: Progress) -> dict:
    rounds = args.rounds or ROUNDS[args.command]
    seconds = args.seconds or SECONDS.get(args.command, 1.0)
    if args.command in costs.COSTS:
        return costs.measure(task, args.command, names, rounds, say)
    if args.command in STRETCHES:
        return STRETCHES[args.command](task, names, args.images, rounds, seconds, say)
    return rates.measure(task, args.command, names, rounds, seconds, say)


def _table(result: dict[str, Any], command: str, peer: str) -> str:
    if command in costs.COSTS:
        return report.costs(result, command)
    if command in STRETCHES:
        return report_input.TABLES[command](result)
    return report.rates(result, peer)


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
    default = {**PEERS, "decode": ",".join(installed())}.get(args.command, "torch,flax")
    peers = args.peers if args.peers is not None else default
    names = contenders_of(args.command, peers)
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
