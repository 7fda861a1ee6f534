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
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.accelerator_steps import (
    DIGITS,
    DRY_RUN,
    GPU,
    MINUTES,
    NETWORKS,
    ROOT,
    Part,
    Step,
    make_parts,
)
from benchmarks.cli import run
from benchmarks.compare import relative_difference
from benchmarks.machine import describe, machine
from benchmarks.task import check_choice
from resflax.errors import Parser, UserError
from resflax.files import path_type

DRY_MINUTES = 60.0
KEPT_LINES = 3
KEPT_COSTS = 3
Result = dict[str, Any]


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
            with ThreadPoolExecutor(max(len(group), 1)) as pool:
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
    shares["largest_costs"] = step.get("largest_costs", [])[:KEPT_COSTS] or "not traced"
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
    if not args.data and "runs" in chosen:
        print("three seeds: no --data: " + ("the digits instead" if args.dry_run else "not run"))
    print(json.dumps(report["summary"], indent=1))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], main))
