"""A disk that fills up while a run saves."""

import resource
import signal
import subprocess
import tempfile
from pathlib import Path

from runs import KINDS, Start, environment, told


def limited(size: int):
    """No file may be larger, as if the disk were full; for a process that is about to start."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def whole(place: Path) -> object:
    """What a run leaves that was not hurt."""
    start = Start(place / "whole", KINDS["resident"], environment(place / "cache"))
    assert start.wait() == 0, start.log.read_text()
    return told(place / "whole")


def judged(place: Path, workdir: Path, status: int, before: set[str], wanted: object) -> list[str]:
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
    """Stopped after some steps, started with files of 4 kB at most, then without; what is wrong."""
    place = Path(tempfile.mkdtemp(prefix="faults-"))
    wanted, workdir, env = whole(place), place / "run", environment(place / "cache")
    first = [*KINDS["resident"], "--config.epochs=2"]
    assert Start(workdir, first, env).wait() == 0
    before = {p.name for p in (workdir / "checkpoints").iterdir()}
    status = Start(workdir, KINDS["resident"], env, preexec_fn=limited(4096)).wait()
    wrong = judged(place, workdir, status, before, wanted)
    if (again := Start(workdir, KINDS["resident"], env).wait()) != 0:
        wrong.append(f"with room again: status {again}")
    return wrong


def small_disk(kilobytes: int = 600) -> list[str]:
    """A tmpfs that is too small for the run, then larger; needs the right to mount."""
    place = Path(tempfile.mkdtemp(prefix="faults-"))
    wanted, env, disk = whole(place), environment(place / "cache"), place / "disk"
    disk.mkdir()
    size = f"size={kilobytes}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(disk)], check=True)
    try:
        # The log lies beside the folder, on the small disk: so a link leads there.
        workdir = place / "run"
        workdir.symlink_to(disk / "run")
        status = Start(workdir, KINDS["resident"], env).wait()
        left = {p.name for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal()}
        wrong = judged(place, workdir, status, left, wanted)
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        again = Start(workdir, KINDS["resident"], env).wait()
        if again != 0 or told(workdir) != wanted:
            wrong.append(f"with room again: status {again}, or other bits")
        return wrong
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
