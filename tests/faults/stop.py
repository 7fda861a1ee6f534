"""Runs that are asked to end, by SIGTERM and SIGINT, at random moments."""

import random
import signal
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from starts import Start, environment, reference, told
from tqdm import tqdm


@dataclass
class Stopped:
    """What came of it: `statuses` as they were, `seconds` from the signal to the end."""

    right: int = 0
    seconds: list[float] = field(default_factory=list)
    saved: int = 0  # ended with a step and its checkpoint, not before the first
    wrong: list[str] = field(default_factory=list)


def campaign(runs: int, number: int = signal.SIGTERM, seed: int = 0) -> Stopped:
    """Each run is asked once, must end with 128 + the signal's number, and go on to its end."""
    unhurt, found, rng = reference("resident"), Stopped(), random.Random(seed)
    place, env = Path(tempfile.mkdtemp(prefix="faults-")), environment(unhurt.place / "cache")
    keys = unhurt.keys
    for i in tqdm(range(runs), signal.Signals(number).name):
        workdir = place / f"run{i}"
        start = Start(workdir, keys, env)
        part = rng.uniform(i, i + 1) / runs  # spread over imports, compilation and steps
        until = start.began + 0.2 + part * unhurt.seconds  # Python needs 0.1 s to begin
        while time.monotonic() < until and not unhurt.nearly(workdir):
            time.sleep(0.0005)
        asked = time.monotonic()
        if start.process.poll() is None:
            start.kill(number)
        status = start.wait()
        found.seconds.append(time.monotonic() - asked)
        found.saved += "stopped after step" in start.log.read_text()
        again = Start(workdir, keys, env).wait()
        if (status, again) == (128 + number, 0) and told(workdir) == unhurt.left:
            found.right += 1
        else:
            found.wrong.append(f"run {i}: status {status}, then {again}: see {start.log}")
    return found
