"""Runs that are killed at random moments, and started again until they end."""

import json
import random
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from starts import Reference, Start, environment, lines, reference, told
from tqdm import tqdm

MOMENTS = ("any time", "compiling", "step", "evaluation", "saving", "sealing")


@dataclass
class Found:
    """What came of a campaign."""

    identical: int = 0
    kills: Counter = field(default_factory=Counter)
    maximum: int = 0  # kills of one run
    left_over: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def reached(moment: str, start: Start, workdir: Path, was: int) -> bool:
    """Whether a start is at a moment; `was` is how long its log and records were."""
    folder = workdir / "checkpoints"
    if moment == "compiling":
        return start.log.read_text().count("compiling") > was
    if moment == "step":
        return len(lines(workdir)) > was
    if moment == "evaluation":
        # A record between two of every fourth step: an epoch's end, evaluated next.
        last = json.loads((lines(workdir) or ["{}"])[-1])
        return last.get("split") == "train" and last["step"] % 4 != 0
    names = [p.name for p in folder.iterdir()] if folder.exists() else []
    if moment == "saving":
        return any("tmp" in name for name in names)
    return any(n.isdecimal() and not (folder / n / "checksums.json").exists() for n in names)


def hurt(start: Start, workdir: Path, moment: str, rng: random.Random, unhurt: Reference) -> bool:
    """Kills a start at a moment, or before its end; False if it ended before."""
    was = start.log.read_text().count("compiling") if moment == "compiling" else 0
    was = len(lines(workdir)) if moment == "step" else was
    until = rng.uniform(0.1, unhurt.seconds) if moment == "any time" else 30.0
    while start.process.poll() is None and time.monotonic() - start.began < until:
        if moment == "any time":
            if unhurt.nearly(workdir):
                break
        elif reached(moment, start, workdir, was):
            time.sleep(rng.choice([0, 0, 0.002, 0.01, 0.1, 0.5]))
            break
        time.sleep(0.0005)
    if start.process.poll() is not None:
        return False
    start.kill()
    start.process.wait()
    return True


def one(number: int, unhurt: Reference, maximum: int, place: Path, found: Found) -> None:
    """One run, killed once to `maximum` times; what it leaves must be what was wanted."""
    rng = random.Random(number)
    workdir = place / f"run{number}"
    # One run of five compiles by itself, and may be killed as it keeps what it compiled.
    env = environment(place / f"cache{number}" if number % 5 == 4 else unhurt.place / "cache")
    dead, kills = [], 0
    for _ in range(min(maximum, rng.choice([1, 1, 2, 2, 3, 4]))):
        moment = MOMENTS[(number + kills) % len(MOMENTS)]
        start = Start(workdir, unhurt.keys, env)
        if not hurt(start, workdir, moment, rng, unhurt):
            break
        kills += 1
        found.kills[moment] += 1
        dead.append((start, time.monotonic()))
    status = Start(workdir, unhurt.keys, env).wait()
    for start, when in dead:
        time.sleep(max(0.0, when + 5 - time.monotonic()))
        found.left_over += start.left_over()
    found.maximum = max(found.maximum, kills)
    if status == 0 and told(workdir) == unhurt.left:
        found.identical += 1
    else:
        found.wrong.append(f"run {number}: status {status}, see {workdir}.log")


def campaign(runs: int, kind: str, maximum: int = 4, at_once: int = 2) -> Found:
    """That many runs of a kind, killed, against one that was not."""
    unhurt, found = reference(kind), Found()
    place = Path(tempfile.mkdtemp(prefix="faults-"))
    with ThreadPoolExecutor(at_once) as pool:
        done = [pool.submit(one, n, unhurt, maximum, place, found) for n in range(runs)]
        for future in tqdm(done, f"kill, {kind}"):
            future.result()
    return found
