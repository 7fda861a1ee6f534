"""What a number was measured on: a number without its machine says nothing."""

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "torch", "numpy", "grain", "pillow")
ROOT = Path(__file__).parents[1]


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:  # not Linux
        return ""


def _field(text: str, name: str) -> str:
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _output(*command: str) -> str:
    """What a command prints, or "" if it is not there or fails."""
    if not shutil.which(command[0]):
        return ""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _cores() -> int | None:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def machine() -> dict[str, Any]:
    """Processor, memory, accelerators, versions and commit."""
    cpu = _read("/proc/cpuinfo")
    flags = _field(cpu, "flags").split()
    memory = _field(_read("/proc/meminfo"), "MemTotal").split() or ["0"]
    return {
        "processor": _field(cpu, "model name") or platform.processor() or platform.machine(),
        "family_model": [_field(cpu, "cpu family"), _field(cpu, "model")],
        "cores": _cores(),
        "vector_flags": [f for f in flags if f == "avx2" or f.startswith(("avx512", "amx"))],
        "memory_bytes": int(memory[0]) * 1024,
        "gpus": _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version for name in LIBRARIES if (version := _version(name))},
        "commit": _output("git", "rev-parse", "HEAD"),
        "uncommitted": bool(_output("git", "status", "--porcelain")),
    }


def describe(about: dict[str, Any]) -> str:
    """The machine in two lines."""
    telling = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")
    flags = [flag for flag in about["vector_flags"] if flag in telling]
    gpus = "".join(f"; {gpu}" for gpu in about["gpus"])
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    commit = about["commit"][:10] + (" and uncommitted changes" if about["uncommitted"] else "")
    return (
        f"{about['processor']} (family {', model '.join(about['family_model'])}),"
        f" {about['cores']} cores, {' '.join(flags)},"
        f" {about['memory_bytes'] / 2**30:.0f} GiB{gpus}\n"
        f"Python {about['python']}, {versions}; commit {commit or 'unknown'}"
    )


def cpu_seconds(process: int) -> float | None:
    """What a process and those below it that live have had of processors; None if not on Linux."""
    parents, ticks = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        # The name, in parentheses, may hold anything.
        fields = _read(str(path)).rpartition(")")[2].split()
        if fields:
            pid = int(path.parent.name)
            parents[pid], ticks[pid] = int(fields[1]), int(fields[11]) + int(fields[12])
    if process not in ticks:
        return None
    below = {process}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return sum(ticks[pid] for pid in below) / os.sysconf("SC_CLK_TCK")
