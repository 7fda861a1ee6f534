"""Runs of several processes, one of which is killed or stopped."""

import random
import signal
import socket
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm
from train_process import PIPELINES, TrainProcess, make_env, read_outputs, read_records


@dataclass
class Report:
    """Outcome of a campaign.

    Attributes:
      ended: number of runs of which all processes ended with the right status.
      resumed: number of runs that then finished bit-identically.
      seconds: time from the signal to the end of the last process, for each run.
      errors: one line for each run that failed.
    """

    ended: int = 0
    resumed: int = 0
    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def start_with_mpirun(
    workdir: Path, options: list[str], env: dict[str, str], count: int
) -> list[TrainProcess]:
    """Starts `mpirun` with some processes of one run, which JAX detects."""
    env = {**env, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    launcher = ["mpirun", "-n", str(count), "--oversubscribe", "--bind-to", "none"]
    return [TrainProcess(workdir, [*options, "--distributed"], env, launcher)]


def start_processes(
    workdir: Path, options: list[str], env: dict[str, str], count: int
) -> list[TrainProcess]:
    """Starts the processes of one run, each with its own log."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    if count > 1:
        coordinator = f"--coordinator=127.0.0.1:{port}"
        options = [*options, "--distributed", coordinator, f"--num_processes={count}"]
    return [
        TrainProcess(
            workdir,
            [*options, *([f"--process_id={i}"] if count > 1 else [])],
            env,
            log=f"{workdir}-{i}.log",
        )
        for i in range(count)
    ]


def campaign(
    runs: int, engine: str, number: int = signal.SIGKILL, count: int = 2, seed: int = 0
) -> Report:
    """Sends a signal to one process of each run, process 0 in turn, and resumes the run."""
    folder, report, rng = Path(tempfile.mkdtemp(prefix="faults-")), Report(), random.Random(seed)
    options = [*PIPELINES["device"], f"--config.parallel={engine}"]
    env = make_env(folder / "cache")
    for name in ("first", "second"):
        processes = start_processes(folder / name, options, env, count)
        assert [p.wait() for p in processes] == [0] * count, processes[0].log.read_text()
    outputs = read_outputs(folder / "second")
    expected = 2 if number == signal.SIGKILL else 128 + number
    for i in tqdm(range(runs), f"lost, {engine}"):
        workdir = folder / f"run{i}"
        processes = start_processes(workdir, options, env, count)
        records = rng.randrange(1, 8)
        while len(read_records(workdir)) < records:
            assert processes[0].is_running(), processes[0].log.read_text()
            time.sleep(0.001)
        signal_time = time.monotonic()
        processes[i % count].send(number)
        statuses = [process.wait(120) for process in processes]
        report.seconds.append(time.monotonic() - signal_time)
        if number == signal.SIGKILL:
            statuses.pop(i % count)
        # 134: JAX aborts when process 0 is lost.
        ended = all(status in (expected, 134) for status in statuses)
        report.ended += ended
        resumed = [process.wait() for process in start_processes(workdir, options, env, count)]
        same = resumed == [0] * count and read_outputs(workdir) == outputs
        report.resumed += same
        if not ended or not same:
            report.errors.append(f"{engine} {i}: {statuses}, then {resumed}, see {workdir}-0.log")
    return report


def main(runs: int) -> bool:
    """Prints the reports of both engines and signals; returns whether all is well."""
    passed = True
    for engine in ("pmap", "mesh"):
        for number, verb in ((signal.SIGKILL, "killed"), (signal.SIGTERM, "stopped by SIGTERM")):
            report = campaign(runs, engine, number)
            print(
                f"two processes, {engine}, one {verb}: all ended in {report.ended} of {runs},"
                f" after {max(report.seconds):.1f} s at most; {report.resumed} resumed"
                " bit-identically"
            )
            print(*report.errors, sep="\n", end="", flush=True)
            passed &= report.ended == report.resumed == runs
    return passed
