"""Measures this checkout on a machine with one GPU: the steps of tools/accelerator.sh.

Each step is a process with a time limit, so that none can stop the others. `accelerator.json` in
the output folder is complete after every step, `accelerator.log` has what the steps printed.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.cli import run
from benchmarks.compare import relative_difference
from benchmarks.machine import describe, machine
from benchmarks.task import check_choice
from resflax.errors import Parser, UserError
from resflax.files import path_type

ROOT = Path(__file__).parents[1]
# Of a run on a GPU. With `--minutes`, the limits of parts and steps grow in proportion.
MINUTES, DRY_MINUTES = 8.0, 40.0
KEPT_LINES = 3
Result = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """A process to run.

    Attributes:
      name: name of the step and of its log.
      command: arguments of Python.
      limit: seconds after which it is ended, in a run of `MINUTES`.
      results: JSON file that it writes, in the folder that it runs in.
      keys: those of its results to keep; all of them if empty.
      env: environment variables.
      requires: package that must be installed; "" for none.
    """

    name: str
    command: Sequence[str]
    limit: float
    results: str = ""
    keys: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    requires: str = ""


class Part(NamedTuple):
    """Groups of steps; the steps of a group run at the same time.

    Attributes:
      seconds: its part of the time; what it leaves is for the following parts.
      groups: the steps.
    """

    seconds: float
    groups: list[list[Step]]


@dataclass(frozen=True)
class Sizes:
    """Sizes and settings that differ between a run and a dry run."""

    network: str
    members: str
    counts: str
    device: str
    seconds: float
    train: tuple[str, ...]
    recipe: tuple[str, ...]


GPU = Sizes(
    network="resnet50@224:256",
    members="cifar_resnet20@32:128",
    counts="1,4,16",
    device="gpu",
    seconds=2.0,
    train=("--config.epochs=5",),
    recipe=("--config.epochs=20", "--config.decay_epochs=(10.0,15.0)"),
)
DRY_RUN = Sizes(
    network="cifar_resnet8@8:8",
    members="cifar_resnet8@8:8",
    counts="2",
    device="cpu",
    seconds=0.05,
    train=("--config.model=cifar_resnet8", "--config.epochs=1", "--config.batch_size=256"),
    recipe=("--config.model=cifar_resnet8", "--config.epochs=1", "--config.decay_epochs=(0.5,)"),
)
RESULTS = ("params_sha256", "test_accuracy", "wall_seconds")
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
# Runs of the digits with the same config and seed, twice each.
DIGITS = {
    "pmap": ("pmap", ""),
    "mesh": ("mesh", ""),
    "deterministic": ("pmap", DETERMINISTIC),
    "deterministic, not autotuned": ("pmap", f"{DETERMINISTIC} --xla_gpu_autotune_level=0"),
}
NETWORKS = {"resflax": "jax", "torch.compile": "torch", "flax": "flax", "torch": "torch"}


def reproducibility(sizes: Sizes) -> Part:
    """Returns runs with the same config, and the logits of one of them next to PyTorch's."""
    runs = [
        Step(
            f"digits {name} {i}",
            [
                *(str(ROOT / "train.py"), f"--workdir=digits {name} {i}"),
                *(f"--config.parallel={engine}", *sizes.train),
            ],
            limit=90,
            results=f"digits {name} {i}/results.json",
            keys=RESULTS,
            env={"XLA_FLAGS": flags},
        )
        for name, (engine, flags) in DIGITS.items()
        for i in (1, 2)
    ]
    convert = ["-m", "resflax", "convert", "digits pmap 1"]
    verified = [
        Step(
            f"convert --verify, {precision}",
            [*convert, f"{precision}.safetensors", "--verify"],
            limit=45,
            env={"JAX_DEFAULT_MATMUL_PRECISION": precision},
            requires="torch",
        )
        for precision in ("default", "highest")
    ]
    return Part(90, [runs, verified])


def _measure(name: str, sizes: Sizes, *command: str, limit: float, **fields: Any) -> Step:
    file = f"{name}.json"
    options = (f"--device={sizes.device}", f"--seconds={sizes.seconds}", f"--json={file}")
    arguments = ["-m", "benchmarks.one_process", *command, *options]
    return Step(name, arguments, limit=limit, results=file, **fields)


def network(sizes: Sizes) -> Part:
    """Returns training and inference of ResNet-50, next to the rates of the card."""
    steps = [_measure("card", sizes, "card", "--dtype=bfloat16", limit=45)]
    for name, package in NETWORKS.items():
        task = (f"--model={sizes.network}", "--dtype=bfloat16")
        steps.append(_measure(name, sizes, "network", name, *task, limit=110, requires=package))
    return Part(230, [[step] for step in steps])


def ensembles(sizes: Sizes) -> Part:
    """Returns the training step of several members, by how they are computed."""
    groups = [
        [
            _measure(
                f"members, {convolution}",
                sizes,
                *("members", methods, f"--model={sizes.members}", f"--members={sizes.counts}"),
                limit=80,
                env={"RESFLAX_MEMBER_CONV": convolution},
            )
        ]
        for convolution, methods in (("loop", "separate,vmap,map"), ("grouped", "vmap"))
    ]
    return Part(90, groups)


def seeds(sizes: Sizes, data: str) -> Part:
    """Returns a run of three seeds as one program, on the images in `data`."""
    folder, groups = "digits", []
    if data:
        folder = f"folder:{data}"
    if data and Path(data).is_file():
        groups.append([Step("unpack", ["-m", "tarfile", "-e", data, "data"], limit=60)])
        folder = "folder:data"
    options = (f"--config.dataset={folder}", "--config.ensemble.size=3", *sizes.recipe)
    recipe = f"--config={ROOT / 'configs' / 'cifar10_resnet.py'}:20"
    command = [str(ROOT / "train.py"), recipe, "--workdir=seeds", *options]
    groups.append([Step("three seeds", command, limit=110, results="seeds/results.json")])
    return Part(70, groups)


def make_parts(sizes: Sizes, data: str) -> dict[str, Part]:
    """Returns the parts by name, in the order in which they run."""
    parts = {
        "reproducibility": reproducibility(sizes),
        "resnet50": network(sizes),
        "ensembles": ensembles(sizes),
    }
    # A dry run without images uses the digits.
    return parts | ({"cifar10": seeds(sizes, data)} if data or sizes is DRY_RUN else {})


def run_step(step: Step, limit: float, *, folder: Path, env: Mapping[str, str]) -> Result:
    """Runs a step in `folder` for at most `limit` s; returns how it ended, and its results."""
    if step.requires and not importlib.util.find_spec(step.requires):
        return {"status": "not run", "reason": f"{step.requires} is not installed"}
    if limit < 1:
        return {"status": "not run", "reason": "no time left"}
    log, start = folder / f"{step.name}.log", time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *step.command],
            cwd=folder,
            env={**env, **step.env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with suppress(ProcessLookupError):  # also the processes that it started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    result: Result = {"status": {0: "ok", None: "timed out"}.get(code, f"exit status {code}")}
    result["seconds"] = round(time.monotonic() - start, 1)
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    result["output"] = lines[-KEPT_LINES:]
    with suppress(OSError, ValueError):  # what a step that failed has left
        values = json.loads((folder / step.results).read_text())
        result["results"] = {k: values[k] for k in step.keys or values}
    return result


def run_parts(
    parts: Mapping[str, Part], folder: Path, scale: float, env: Mapping[str, str]
) -> Iterator[tuple[str, Step, Result]]:
    """Runs all parts; yields the part, the step and the result of each step.

    Args:
      parts: the parts by name.
      folder: the folder that the steps run in.
      scale: factor of the limits of parts and steps.
      env: environment variables of all steps.
    """
    end = time.monotonic()
    for name, part in parts.items():
        end += scale * part.seconds
        for group in part.groups:
            left = end - time.monotonic()
            limits = [min(scale * step.limit, left) for step in group]
            with ThreadPoolExecutor(len(group)) as pool:
                results = pool.map(partial(run_step, folder=folder, env=env), group, limits)
                for step, result in zip(group, results, strict=True):
                    yield name, step, result


def summarize(parts: Mapping[str, Mapping[str, Result]]) -> Result:
    """Returns the answers that the results of all steps give."""
    found = {
        step: values["results"]
        for part in parts.values()
        for step, values in part.items()
        if values.get("results")
    }
    summary: Result = {"same_bits": {}, "images_per_second": {}, "speed_of_members": {}}
    for name in DIGITS:
        pair = [found[f"digits {name} {i}"] for i in (1, 2) if f"digits {name} {i}" in found]
        if len(pair) == 2:
            same = pair[0]["params_sha256"] == pair[1]["params_sha256"]
            summary["same_bits"][name] = same
    for mode in ("step", "inference"):
        rates = {n: found[n][mode]["images_per_second"] for n in NETWORKS if _has(found, n, mode)}
        summary["images_per_second"][mode] = rates
    if _has(found, "resflax", "step"):
        summary |= _shares(found)
    for step, cases in found.items():
        for case, values in cases.items() if step.startswith("members, ") else ():
            method, _, count = case.partition(":")
            single = found.get("members, loop", {}).get(f"separate:{count}")
            if single and method != "separate":
                key = f"{count} by {method}, {step.removeprefix('members, ')}"
                rate = values["images_per_second"] / single["images_per_second"]
                summary["speed_of_members"][key] = rate
    return summary


def _has(found: Mapping[str, Result], name: str, mode: str) -> bool:
    return "images_per_second" in found.get(name, {}).get(mode, {})


def _shares(found: Mapping[str, Result]) -> Result:
    """Returns the shares of the card's rates, the largest costs, and differences of losses."""
    step, card, shares = found["resflax"]["step"], found.get("card", {}), Result()
    if "gemm" in card:
        shares["share_of_matmul_rate"] = step["flops_per_second"] / card["gemm"]["per_second"]
    if "bandwidth" in card and step.get("bytes_accessed"):
        rate = step["bytes_accessed"] / step["seconds"]["median"]
        shares["share_of_bandwidth"] = rate / card["bandwidth"]["per_second"]
    shares["largest_costs"] = step.get("largest_costs", "not traced")
    shares["loss_difference"] = {
        name: relative_difference(step["losses"], found[name]["step"]["losses"])
        for name in NETWORKS
        if name != "resflax" and _has(found, name, "step")
    }
    return shares


def environment(device: str) -> dict[str, str]:
    """Returns the environment variables of all steps."""
    platforms = {"gpu": "cuda,cpu", "cpu": "cpu"}[device]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    more = {"JAX_PLATFORMS": platforms, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    # The runs of a group share the GPU.
    return {**os.environ, **more, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def main(argv: list[str]) -> None:
    """Runs the parts; writes the JSON file after every step."""
    parser = Parser(prog="tools/accelerator.sh", allow_abbrev=False)
    add = parser.add_argument
    add("--out", type=path_type, default=Path("runs/accelerator"), help="default: %(default)s")
    add("--dry-run", action="store_true", help="tiny sizes on the CPU")
    add("--data", default="", help="CIFAR-10 as JPEG: a folder, or a tar file of one")
    add("--minutes", type=float, help=f"for all; default: {MINUTES:g}, dry run {DRY_MINUTES:g}")
    add("--parts", default="", metavar="A,B", help="default: all")
    args = parser.parse_args(argv)
    if args.data and not Path(args.data).exists():
        raise UserError(f"--data: {args.data!r} does not exist: expected a folder or a tar file")
    sizes = DRY_RUN if args.dry_run else GPU
    parts = make_parts(sizes, str(Path(args.data).absolute()) if args.data else "")
    for name in filter(None, args.parts.split(",")):
        check_choice("part", name, tuple(parts))
    chosen = [n for n in parts if not args.parts or n in args.parts.split(",")]
    folder = args.out.absolute() / "work"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    report: Result = {"argv": argv, "machine": machine(), "parts": {}}
    print(describe(report["machine"]), flush=True)
    scale = (args.minutes or (DRY_MINUTES if args.dry_run else MINUTES)) / MINUTES
    log = args.out / "accelerator.log"
    log.unlink(missing_ok=True)
    rows = run_parts(
        {name: parts[name] for name in chosen}, folder, scale, environment(sizes.device)
    )
    for part, step, result in rows:
        report["parts"].setdefault(part, {})[step.name] = result
        report["summary"] = summarize(report["parts"])
        (args.out / "accelerator.json").write_text(json.dumps(report, indent=1) + "\n")
        detail = result.get("reason") or f"{result['seconds']} s"
        print(f"{part}: {step.name}: {result['status']}, {detail}", flush=True)
        with log.open("a") as output, suppress(OSError):
            text = (folder / f"{step.name}.log").read_text(errors="replace")
            output.write(f"== {part}: {step.name}\n{text}\n")
    shutil.rmtree(folder, ignore_errors=True)
    if not args.data:
        print("cifar10: no --data: " + ("the digits instead" if args.dry_run else "not run"))
    print(json.dumps(report["summary"], indent=1))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], main))
