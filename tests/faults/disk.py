"""A disk that fills up while a run saves."""

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from starts import Reference, Start, environment, reference, told

LIMITED = """import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])
"""


def judged(workdir: Path, status: int, before: set[str]) -> list[str]:
    """What is wrong: with the end on a full disk, or with going on when there is room."""
    log = workdir.with_name(f"{workdir.name}.log").read_text()
    errors = [line for line in log.splitlines() if line.startswith("error: ")]
    after = {p.name for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal()}
    wrong = []
    if status != 2 or len(errors) != 1 or "Traceback" in log:
        wrong.append(f"status {status}, {len(errors)} errors: {log[-600:]}")
    if not before & after:
        wrong.append(f"of the checkpoints {sorted(before)} none is left: {sorted(after)}")
    return wrong


def sealed(workdir: Path) -> set[str]:
    """The steps whose checkpoints are whole."""
    return {path.parent.name for path in workdir.glob("checkpoints/*/checksums.json")}


def size_limited() -> list[str]:
    """Killed after some steps, then no file may be large, then any may; what is wrong."""
    unhurt, workdir = reference("workers"), Path(tempfile.mkdtemp(prefix="faults-")) / "run"
    env = environment(unhurt.place / "cache")
    keys = [*unhurt.keys, "--config.data.num_workers=0"]  # they would need files for their memory
    start = Start(workdir, keys, env)
    while not sealed(workdir) and start.process.poll() is None:
        time.sleep(0.001)
    start.kill()
    start.process.wait()
    whole = sealed(workdir)
    largest = max(
        p.stat().st_size for p in workdir.rglob("checkpoints/*/state/**/*") if p.is_file()
    )
    status = Start(workdir, keys, env, [sys.executable, "-c", LIMITED, str(largest // 2)]).wait()
    return judged(workdir, status, whole) + goes_on(workdir, unhurt, env)


@contextlib.contextmanager
def mounted(size: str) -> Iterator[tuple[Path, Path]]:
    """A workdir on a tmpfs of that size, and the tmpfs; needs the right to mount."""
    place = Path(tempfile.mkdtemp(prefix="faults-"))
    disk, workdir = place / "disk", place / "run"  # its log lies beside it, not on the small disk
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], check=True)
    try:
        (disk / "run").mkdir()
        workdir.symlink_to(disk / "run")
        yield workdir, disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def remount(disk: Path, option: str) -> bool:
    """Whether it could be done: not while a file is written to."""
    command = ["mount", "-o", f"remount,{option}", str(disk)]
    return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0


def goes_on(workdir: Path, unhurt: Reference, env: dict[str, str]) -> list[str]:
    """What is wrong with the end of a run that was hurt."""
    again = Start(workdir, unhurt.keys, env).wait()
    same = again == 0 and told(workdir) == unhurt.left
    return [] if same else [f"with room again: status {again}, or other bits"]


def small_disk() -> list[str]:
    """A tmpfs that is too small for the run, then larger; what is wrong."""
    unhurt = reference("resident")
    env = environment(unhurt.place / "cache")
    with mounted("400k") as (workdir, disk):
        status = Start(workdir, unhurt.keys, env).wait()
        whole = sealed(workdir)
        wrong = judged(workdir, status, whole)
        remount(disk, "size=64m")
        return wrong + goes_on(workdir, unhurt, env)


def read_only() -> list[str]:
    """A disk that turns read-only after the first checkpoint, then back; what is wrong."""
    unhurt = reference("resident")
    env = environment(unhurt.place / "cache")
    with mounted("64m") as (workdir, disk):
        start = Start(workdir, unhurt.keys, env)
        while not sealed(workdir):
            time.sleep(0.001)
        while not remount(disk, "ro"):
            time.sleep(0.001)
        whole = sealed(workdir)
        wrong = judged(workdir, start.wait(), whole)
        remount(disk, "rw")
        return wrong + goes_on(workdir, unhurt, env)
