"""Runs whose disk fills up, or becomes read-only, while they save."""

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from train_process import Reference, TrainProcess, make_env, read_outputs, reference_run

# Starts a command with a maximum size of files.
LIMIT_FILE_SIZE = """import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])
"""


def complete_checkpoints(workdir: Path) -> set[str]:
    """Returns the steps whose checkpoints have a manifest."""
    return {path.parent.name for path in workdir.glob("checkpoints/*/checksums.json")}


def check_failure(workdir: Path, status: int, before: set[str]) -> list[str]:
    """Checks that a run ended with one error and kept a checkpoint; returns what is wrong.

    Args:
      workdir: workdir of the run.
      status: exit status of the process.
      before: complete checkpoints before the disk was full.
    """
    log = workdir.with_name(f"{workdir.name}.log").read_text()
    lines = [line for line in log.splitlines() if line.startswith("error: ")]
    after = {p.name for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal()}
    errors = []
    if status != 2 or len(lines) != 1 or "Traceback" in log:
        errors.append(f"status {status}, {len(lines)} errors: {log[-600:]}")
    if not before & after:
        errors.append(f"no checkpoint of {sorted(before)} remains: {sorted(after)}")
    return errors


def check_resume(workdir: Path, reference: Reference, env: dict[str, str]) -> list[str]:
    """Checks that the same command finishes the run bit-identically; returns what is wrong."""
    status = TrainProcess(workdir, reference.options, env).wait()
    same = status == 0 and read_outputs(workdir) == reference.outputs
    return [] if same else [f"resumed with enough space: status {status}, or other outputs"]


def limited_file_size() -> list[str]:
    """Limits the size of files after the first checkpoint; returns what is wrong."""
    reference, workdir = reference_run("workers"), Path(tempfile.mkdtemp(prefix="faults-")) / "run"
    env = make_env(reference.folder / "cache")
    # Workers need files for shared memory.
    options = [*reference.options, "--config.data.num_workers=0"]
    process = TrainProcess(workdir, options, env)
    while not complete_checkpoints(workdir) and process.is_running():
        time.sleep(0.001)
    process.kill()
    complete = complete_checkpoints(workdir)
    files = [path for path in workdir.rglob("checkpoints/*/state/**/*") if path.is_file()]
    limit = max(path.stat().st_size for path in files) // 2
    launcher = [sys.executable, "-c", LIMIT_FILE_SIZE, str(limit)]
    status = TrainProcess(workdir, options, env, launcher).wait()
    return check_failure(workdir, status, complete) + check_resume(workdir, reference, env)


@contextlib.contextmanager
def mounted(size: str) -> Iterator[tuple[Path, Path]]:
    """Mounts a tmpfs; yields a workdir on it, and its path. Needs the right to mount."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    # The link keeps the log, which is next to the workdir, off the small disk.
    disk, workdir = folder / "disk", folder / "run"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], check=True)
    try:
        (disk / "run").mkdir()
        workdir.symlink_to(disk / "run")
        yield workdir, disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def remount(disk: Path, option: str) -> bool:
    """Changes an option of a mount; returns False while a file is being written."""
    command = ["mount", "-o", f"remount,{option}", str(disk)]
    return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0


def small_disk() -> list[str]:
    """Trains on a tmpfs that is too small, then enlarges it; returns what is wrong."""
    reference = reference_run("device")
    env = make_env(reference.folder / "cache")
    with mounted("400k") as (workdir, disk):
        status = TrainProcess(workdir, reference.options, env).wait()
        complete = complete_checkpoints(workdir)
        errors = check_failure(workdir, status, complete)
        remount(disk, "size=64m")
        return errors + check_resume(workdir, reference, env)


def read_only_disk() -> list[str]:
    """Makes a disk read-only after the first checkpoint, then writable; returns what is wrong."""
    reference = reference_run("device")
    env = make_env(reference.folder / "cache")
    with mounted("64m") as (workdir, disk):
        process = TrainProcess(workdir, reference.options, env)
        while not complete_checkpoints(workdir):
            time.sleep(0.001)
        while not remount(disk, "ro"):
            time.sleep(0.001)
        complete = complete_checkpoints(workdir)
        errors = check_failure(workdir, process.wait(), complete)
        remount(disk, "rw")
        return errors + check_resume(workdir, reference, env)


def main() -> bool:
    """Prints the report of each fault; returns whether all is well."""
    passed = True
    for name, fault in (
        ("files limited to half of a checkpoint's", limited_file_size),
        ("a tmpfs of 400 kB", small_disk),
        ("a disk that becomes read-only", read_only_disk),
    ):
        errors = fault()
        print(f"{name}:", errors or "one error, the last checkpoint kept, resumed bit-identically")
        passed &= not errors
    return passed
