"""A disk that fills up while a run saves."""

import subprocess
import tempfile
import time
from pathlib import Path

from starts import Start, environment, reference, told


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


def size_limited() -> list[str]:
    """Killed after some steps, then no file may be large, then any may; what is wrong."""
    unhurt, workdir = reference("workers"), Path(tempfile.mkdtemp(prefix="faults-")) / "run"
    env = environment(unhurt.place / "cache")
    keys = [*unhurt.keys, "--config.data.workers=0"]  # they would need files for their memory
    start = Start(workdir, keys, env)
    while not list(workdir.glob("checkpoints/*/checksums.json")) and start.process.poll() is None:
        time.sleep(0.001)
    start.kill()
    start.process.wait()
    whole = {p.parent.name for p in workdir.glob("checkpoints/*/checksums.json")}
    largest = max(
        p.stat().st_size for p in workdir.rglob("checkpoints/*/state/**/*") if p.is_file()
    )
    status = Start(workdir, keys, env, largest // 2).wait()
    wrong = judged(workdir, status, whole)
    again = Start(workdir, unhurt.keys, env).wait()
    if again != 0 or told(workdir) != unhurt.left:
        wrong.append(f"with room again: status {again}, or other bits")
    return wrong


def small_disk(kilobytes: int = 400) -> list[str]:
    """A tmpfs that is too small for the run, then larger; needs the right to mount."""
    unhurt, place = reference("resident"), Path(tempfile.mkdtemp(prefix="faults-"))
    env, disk = environment(unhurt.place / "cache"), place / "disk"
    disk.mkdir()
    size = f"size={kilobytes}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(disk)], check=True)
    try:
        workdir = place / "run"  # its log lies beside it, not on the small disk
        (disk / "run").mkdir()
        workdir.symlink_to(disk / "run")
        status = Start(workdir, unhurt.keys, env).wait()
        whole = {p.parent.name for p in workdir.glob("checkpoints/*/checksums.json")}
        wrong = judged(workdir, status, whole)
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        again = Start(workdir, unhurt.keys, env).wait()
        if again != 0 or told(workdir) != unhurt.left:
            wrong.append(f"with room again: status {again}, or other bits")
        return wrong
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
