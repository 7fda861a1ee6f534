"""Command line of `python -m benchmarks`. All arguments are checked before anything runs."""

import argparse
import dataclasses
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import ensemble, fresh_process, report, report_input, throughput
from benchmarks.fresh_process import FRESH_PROCESS_BENCHMARKS
from benchmarks.input_benchmarks import INPUT_BENCHMARKS
from benchmarks.machine import describe, machine
from benchmarks.peers import AUXILIARY, IMPLEMENTATIONS
from benchmarks.peers.decoders import DECODERS, installed_decoders
from benchmarks.task import (
    DEVICES,
    DTYPES,
    MAX_BATCH,
    Task,
    check_choice,
    check_integer,
    parse_task,
)
from resflax.errors import Parser, UserError, unknown
from resflax.files import path_type

DESCRIPTION = """Measures resflax against a plain Flax linen ResNet and a PyTorch ResNet.

  step       training steps; checks first that all implementations compute the same function
  inference  forward passes, each awaited; resflax is its inference form, `make_predictor`
  compile    seconds to trace, lower and compile the training step (for PyTorch, to the end of the
             first step), each in a fresh process without caches
  memory     peak memory of training
  decode     JPEG decoders on one thread: time, and equality of the pixels
  loader     batches of JPEGs from worker processes, against PyTorch's DataLoader
  ensemble   training steps of several members: one program (resflax) against their steps one
             after another, one process each (processes), and torch.func (torch)
  input      overhead of the trainer's input paths over steps on a fixed batch: small images from
             memory, large ones from JPEGs
"""
EPILOG = """models: name[@size][:batch], for any post-activation ResNet of resflax.list_models():
  resnet50                  224x224, batch 16
  resnet18@32:64            up to 64x64: the CIFAR stem and ten classes
  cifar_resnet20            32x32, batch 128
  resnet1d18@1024:64        signals of 1,024 samples (step, memory, compile)
  r3d_18@56:4               clips of 8 frames of 56x56 (step, memory, compile)
peers: torch (eager, channels_last), torch.compile, flax (plain linen), and resflax with a given
  convolution backend: resflax:cpu, resflax:onednn, resflax:xla (RESFLAX_CONV in the worker process;
  unset for resflax), in inference through `model.apply`. In inference also onnxruntime and openvino
  (on our ONNX export; onnxruntime always in float32), and resflax:jax (the inference form in JAX).
  resflax itself always runs. The first peer is the baseline of the ratios.
  For ensemble: processes, torch (torch.func), torch:separate (one after another), resflax:cpu, and
  vmap, map, vmap:cpu or map:cpu to name the method.
  For decode, peers are decoders: simplejpeg, opencv, imagecodecs, pillow, pillow:draft. For loader:
  torch. input has no peers.

examples:
  python -m benchmarks step --models=resnet50,resnet18@32,cifar_resnet20 --json=step.json
  python -m benchmarks inference --models=resnet50:1,resnet50:16 --dtype=float32,bfloat16 \
    --peers=onnxruntime,openvino,torch
  python -m benchmarks compile --models=cifar_resnet110 --peers=flax
  python -m benchmarks step --models=resnet50 --layers
  python -m benchmarks ensemble --models=cifar_resnet8@8:64 --members=1,8 --peers=processes
  python -m benchmarks input --models=cifar_resnet20,resnet50 --seconds=10
"""


class Defaults(NamedTuple):
    """Default arguments of a command.

    Attributes:
      rounds: number of rounds.
      seconds: duration of one implementation's part of a round.
      models: comma-separated models.
      peers: comma-separated peers; None for all installed decoders.
    """

    rounds: int
    seconds: float = 1.0
    models: str = "cifar_resnet20"
    peers: str | None = "torch,flax"


COMMANDS = {
    "step": Defaults(rounds=9),
    "inference": Defaults(rounds=9),
    "compile": Defaults(rounds=3, peers="flax"),
    "memory": Defaults(rounds=1),
    "decode": Defaults(rounds=5, models="resnet50@224:64", peers=None),
    "loader": Defaults(rounds=5, seconds=3.0, models="resnet50@224:64", peers="torch"),
    "ensemble": Defaults(rounds=5, models=ensemble.MODELS, peers="processes,torch,torch:separate"),
    "input": Defaults(rounds=9, seconds=4.0, peers=""),
}
# Packages whose modules have another name.
PACKAGES = {"cv2": "opencv-python-headless"}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("command", metavar="COMMAND", help=", ".join(COMMANDS))
    add("--models", metavar="A,B", help="default: cifar_resnet20; decode, loader: resnet50@224:64")
    add("--peers", metavar="A,B", help="default: torch,flax; compile: flax; decode: all installed")
    add("--members", metavar="N,M", help="for ensemble; default: 1,2,4,8,16")
    add("--batch", type=int, help="batch size of models without one; default for inference: 1")
    add(
        "--dtype",
        metavar="A,B",
        default="float32",
        help=f"of {', '.join(DTYPES)}; PyTorch uses autocast",
    )
    add("--device", default="auto", help=f"{', '.join(DEVICES)}; default: %(default)s")
    add("--rounds", type=int, help="default: 9; compile 3, memory 1, decode and loader 5")
    add("--seconds", type=float, help="per implementation and round; default: 1; loader 3, input 4")
    add("--images", type=int, default=256, help="number of JPEGs; default: %(default)s")
    add(
        "--json",
        type=path_type,
        metavar="PATH",
        help="write all results and timings to this file",
    )
    add("--layers", action="store_true", help="print the cost of every layer, and exit")
    return parser


def _required_modules(command: str) -> dict[str, str]:
    """Returns, for each implementation of a command, the module that must be installed."""
    if command == "ensemble":
        return {name: AUXILIARY[row.worker].requires for name, row in ensemble.CONTENDERS.items()}
    if command == "decode":
        return {name: decoder.requires for name, decoder in DECODERS.items()}
    if command == "loader":
        return {name: AUXILIARY[f"{name} loader"].requires for name in ("resflax", "torch")}
    if command == "input":
        return {"resflax": AUXILIARY["input paths"].requires}
    rows = IMPLEMENTATIONS.items()
    return {name: row.requires for name, row in rows if row.trains or command == "inference"}


def select_implementations(command: str, peers: str) -> list[str]:
    """Returns resflax and the named peers, without duplicates.

    Raises:
      UserError: if a peer is unknown or its library is not installed.
    """
    required = _required_modules(command)
    first = ensemble.ALWAYS if command == "ensemble" else ("resflax",)
    names = list(dict.fromkeys([*first, *filter(None, peers.split(","))]))
    for name in names:
        if name not in required:
            raise unknown("peer", name, required)
        if not importlib.util.find_spec(required[name]):
            package = PACKAGES.get(required[name], required[name])
            raise UserError(
                f"peer {name!r} needs {required[name]}, which is not installed:"
                f" pip install {package}, or remove it from --peers"
            )
    return names


def _check_numbers(args: argparse.Namespace) -> None:
    check_integer("--batch", args.batch, MAX_BATCH)
    check_integer("--rounds", args.rounds, 10_000)
    check_integer("--images", args.images, 100_000)
    if args.seconds is not None and not 0 < args.seconds <= 600:
        raise UserError(f"--seconds is {args.seconds}: expected a number from 0 to 600")


def _check_members(args: argparse.Namespace) -> None:
    if args.members is None:
        return
    if args.command != "ensemble":
        raise UserError(f"--members is for ensemble only, not for {args.command}")
    ensemble.parse_members(args.members)


def check_json_path(path: Path | None) -> None:
    """Raises `UserError` if `--json` cannot be written."""
    if path and not path.parent.is_dir():
        raise UserError(f"--json: directory {str(path.parent)!r} does not exist")
    if path and path.is_dir():
        raise UserError(f"--json: {str(path)!r} is a directory: expected a file")


def write_json(
    path: Path, argv: list[str], info: dict[str, Any], results: Any, **others: Any
) -> None:
    """Writes the results of a benchmark to the file of `--json`.

    Args:
      path: checked by `check_json_path`.
      argv: the command line.
      info: of the machine, see `benchmarks.machine`.
      results: JSON values.
      others: further entries.
    """
    output = {"argv": argv, **others, "machine": info, "results": results}
    path.write_text(json.dumps(output, indent=1) + "\n")


def _tasks(args: argparse.Namespace) -> list[Task]:
    batch = args.batch or (1 if args.command == "inference" else None)
    models = args.models if args.models is not None else COMMANDS[args.command].models
    names = [name for name in models.split(",") if name]
    needs_peers = args.command != "ensemble"
    if not names:
        raise UserError("--models is empty: expected names, e.g. --models=resnet50,cifar_resnet20")
    return [
        parse_task(
            name,
            batch=batch,
            needs_peers=needs_peers,
            any_dimensions=args.command in ("step", "memory", "compile"),
            dtype=dtype,
            device=args.device,
        )
        for dtype in args.dtype.split(",")
        for name in names
    ]


def _measure(task: Task, args: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    rounds = args.rounds or COMMANDS[args.command].rounds
    seconds = args.seconds or COMMANDS[args.command].seconds
    if args.command == "ensemble":
        members = ensemble.parse_members(args.members or ensemble.MEMBERS)
        return ensemble.measure(task, names, members, rounds, seconds)
    if args.command in FRESH_PROCESS_BENCHMARKS:
        return fresh_process.measure(task, args.command, names, rounds)
    if args.command in INPUT_BENCHMARKS:
        return INPUT_BENCHMARKS[args.command](task, names, args.images, rounds, seconds)
    return throughput.measure(task, args.command, names, rounds, seconds)


def _table(result: dict[str, Any], command: str, baseline: str) -> str:
    if command == "ensemble":
        return ensemble.ensemble_table(result)
    if command in FRESH_PROCESS_BENCHMARKS:
        return report.fresh_process_table(result, command)
    if command in INPUT_BENCHMARKS:
        return report_input.TABLES[command](result)
    return report.throughput_table(result, baseline)


def main(argv: list[str]) -> None:
    """Runs a command. The JSON file is complete after every model."""
    args = _parser().parse_args(argv)
    check_choice("command", args.command, tuple(COMMANDS))
    check_choice("device", args.device, DEVICES)
    for dtype in args.dtype.split(","):
        check_choice("dtype", dtype, DTYPES)
    _check_numbers(args)
    _check_members(args)
    check_json_path(args.json)
    tasks = _tasks(args)
    if args.layers:
        print("\n\n".join(report.layer_table(task) for task in tasks))
        return
    peers = args.peers if args.peers is not None else COMMANDS[args.command].peers
    peers = ",".join(installed_decoders()) if peers is None else peers
    names = select_implementations(args.command, peers)
    baseline = next((name for name in peers.split(",") if name), "resflax")
    info, results = machine(), []
    print(describe(info), flush=True)
    for task in tasks:
        start = time.monotonic()
        result = _measure(task, args, names)
        print(f"\n{report.heading(task, args.command, result.get('platform', ''))}\n")
        print(_table(result, args.command, baseline), flush=True)
        wall = round(time.monotonic() - start, 1)
        results.append({"task": dataclasses.asdict(task), "wall_seconds": wall, **result})
        if args.json:
            write_json(args.json, argv, info, results, baseline=baseline)


def run(argv: list[str], main: Callable[[list[str]], None] = main) -> int:
    """Runs `main`; returns the exit status. A `UserError` is one line on stderr and status 2."""
    try:
        main(argv)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0
