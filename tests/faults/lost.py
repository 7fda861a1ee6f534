"""Several processes as one run, of which one is killed or asked to end."""

import random
import signal
import socket
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from starts import KINDS, Start, environment, lines, told
from tqdm import tqdm


@dataclass
class Lost:
    """What came of it; `seconds` from a kill to the end of the last survivor."""

    ended: int = 0
    resumed: int = 0
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def by_mpi(workdir: Path, keys: list[str], env: dict[str, str], count: int) -> list[Start]:
    """So many processes of one run that find each other by themselves, started by `mpirun`."""
    env = {**env, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    mpi = ["mpirun", "-n", str(count), "--oversubscribe", "--bind-to", "none"]
    return [Start(workdir, [*keys, "--distributed"], env, mpi)]


def together(workdir: Path, keys: list[str], env: dict[str, str], count: int) -> list[Start]:
    """So many processes of one run; each has a log of its own."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    said = ["--distributed", f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}"]
    return [
        Start(
            workdir,
            [*keys, *([*said, f"--process_id={i}"] if count > 1 else [])],
            env,
            log=f"{workdir}-{i}.log",
        )
        for i in range(count)
    ]


def campaign(
    runs: int, engine: str, number: int = signal.SIGKILL, count: int = 2, seed: int = 0
) -> Lost:
    """Each run loses one process once, process 0 in turn; all are started again."""
    place, found, rng = Path(tempfile.mkdtemp(prefix="faults-")), Lost(), random.Random(seed)
    keys, env = [*KINDS["resident"], f"--config.parallel={engine}"], environment(place / "cache")
    for name in ("warm", "whole"):
        starts = together(place / name, keys, env, count)
        assert [start.wait() for start in starts] == [0] * count, starts[0].log.read_text()
    wanted = told(place / "whole")
    expected = 2 if number == signal.SIGKILL else 128 + number
    for i in tqdm(range(runs), f"lost, {engine}"):
        workdir = place / f"run{i}"
        starts = together(workdir, keys, env, count)
        minimum = rng.randrange(1, 8)
        while len(lines(workdir)) < minimum:
            assert starts[0].process.poll() is None, starts[0].log.read_text()
            time.sleep(0.001)
        at = time.monotonic()
        starts[i % count].kill(number)
        statuses = [start.wait(120) for start in starts]
        found.seconds.append(time.monotonic() - at)
        if number == signal.SIGKILL:
            statuses.pop(i % count)
        good = all(status in (expected, 134) for status in statuses)
        found.ended += good
        again = [start.wait() for start in together(workdir, keys, env, count)]
        same = again == [0] * count and told(workdir) == wanted
        found.resumed += same
        if not good or not same:
            found.wrong.append(f"{engine} {i}: {statuses}, then {again}, see {workdir}-0.log")
    return found
