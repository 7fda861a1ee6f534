"""Description of the machine and the software that a benchmark ran on."""

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = (
    *("jax", "jaxlib", "flax", "optax", "torch", "numpy", "grain", "pillow"),
    *("onednn-cpu-gomp", "onnxruntime", "openvino"),
)
# CPU features that `describe` prints.
VECTOR_EXTENSIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")
ROOT = Path(__file__).parents[1]


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:  # not Linux, or the process has ended
        return ""


def _field(text: str, name: str) -> str:
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _output(*command: str) -> str:
    """Returns the standard output of a command, or "" if it is missing or fails."""
    if not shutil.which(command[0]):
        return ""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _num_cores() -> int | None:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def machine() -> dict[str, Any]:
    """Returns processor, memory, accelerators, library versions and commit."""
    cpu = _read("/proc/cpuinfo")
    flags = _field(cpu, "flags").split()
    memory = _field(_read("/proc/meminfo"), "MemTotal").split() or ["0"]
    return {
        "processor": _field(cpu, "model name") or platform.processor() or platform.machine(),
        "family_model": [_field(cpu, "cpu family"), _field(cpu, "model")],
        "cores": _num_cores(),
        "vector_flags": [f for f in flags if f == "avx2" or f.startswith(("avx512", "amx"))],
        "memory_bytes": int(memory[0]) * 1024,
        "gpus": _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version for name in LIBRARIES if (version := _version(name))},
        "commit": _output("git", "rev-parse", "HEAD"),
        "uncommitted": bool(_output("git", "status", "--porcelain")),
    }


def describe(info: dict[str, Any]) -> str:
    """Formats the result of `machine` in two lines."""
    flags = [flag for flag in info["vector_flags"] if flag in VECTOR_EXTENSIONS]
    gpus = "".join(f"; {gpu}" for gpu in info["gpus"])
    versions = ", ".join(f"{name} {version}" for name, version in info["versions"].items())
    commit = info["commit"][:10] + (" and uncommitted changes" if info["uncommitted"] else "")
    return (
        f"{info['processor']} (family {', model '.join(info['family_model'])}),"
        f" {info['cores']} cores, {' '.join(flags)},"
        f" {info['memory_bytes'] / 2**30:.0f} GiB{gpus}\n"
        f"Python {info['python']}, {versions}; commit {commit or 'unknown'}"
    )


def cpu_seconds(pid: int) -> float | None:
    """Returns the CPU time of a process and its live descendants; None if not on Linux."""
    parents, ticks = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        # The process name, in parentheses, may contain spaces and parentheses.
        fields = _read(str(path)).rpartition(")")[2].split()
        if fields:
            process = int(path.parent.name)
            parents[process], ticks[process] = int(fields[1]), int(fields[11]) + int(fields[12])
    if pid not in ticks:
        return None
    tree = {pid}
    while children := {child for child, parent in parents.items() if parent in tree} - tree:
        tree |= children
    return sum(ticks[process] for process in tree) / os.sysconf("SC_CLK_TCK")
