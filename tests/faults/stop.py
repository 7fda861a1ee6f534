"""Runs that are asked to end, by SIGTERM and SIGINT, at random moments."""

import random
import signal
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from runs import KINDS, Start, environment, told


@dataclass
class Stopped:
    """What came of it: `statuses` as they were, `seconds` from the signal to the end."""

    right: int = 0
    seconds: list[float] = field(default_factory=list)
    saved: int = 0  # ended with a step and its checkpoint, not before the first
    wrong: list[str] = field(default_factory=list)


def campaign(runs: int, number: int = signal.SIGTERM, seed: int = 0) -> Stopped:
    """Each run is asked once, must end with 128 + the signal's number, and go on to its end."""
    place, found = Path(tempfile.mkdtemp(prefix="faults-")), Stopped()
    env, keys, rng = environment(place / "cache"), KINDS["resident"], random.Random(seed)
    for name in ("warm", "whole"):
        start = Start(place / name, keys, env)
        assert start.wait() == 0, start.log.read_text()
        usual = time.monotonic() - start.began
    wanted = told(place / "whole")
    for i in range(runs):
        workdir = place / f"run{i}"
        start = Start(workdir, keys, env)
        time.sleep(rng.uniform(0.2, 0.95 * usual))  # Python itself needs 0.1 s to begin
        asked = time.monotonic()
        if start.process.poll() is None:
            start.kill(number)
        status = start.wait()
        found.seconds.append(time.monotonic() - asked)
        found.saved += "stopped after step" in start.log.read_text()
        again = Start(workdir, keys, env).wait()
        if (status, again) == (128 + number, 0) and told(workdir) == wanted:
            found.right += 1
        else:
            found.wrong.append(f"run {i}: status {status}, then {again}: see {start.log}")
    return found
