"""Runs that get SIGTERM or SIGINT at random moments."""

import random
import signal
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm
from train_process import TrainProcess, make_env, read_outputs, reference_run


@dataclass
class Report:
    """Outcome of a campaign.

    Attributes:
      passed: number of runs that stopped with the right status and finished bit-identically.
      saved: number of runs that stopped after a step, with a checkpoint of it.
      seconds: time from the signal to the end of the process, for each run.
      errors: one line for each run that did not pass.
    """

    passed: int = 0
    saved: int = 0
    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def campaign(runs: int, number: int = signal.SIGTERM, seed: int = 0) -> Report:
    """Stops each run once by a signal: the status must be 128 + its number. Then resumes it."""
    reference, report, rng = reference_run("device"), Report(), random.Random(seed)
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    env, options = make_env(reference.folder / "cache"), reference.options
    for i in tqdm(range(runs), signal.Signals(number).name):
        workdir = folder / f"run{i}"
        process = TrainProcess(workdir, options, env)
        share = rng.uniform(i, i + 1) / runs  # spread over imports, compilation and steps
        # Python needs 0.1 s to start.
        signal_time = process.start_time + 0.2 + share * reference.seconds
        while time.monotonic() < signal_time and not reference.is_almost_finished(workdir):
            time.sleep(0.0005)
        signal_time = time.monotonic()
        if process.is_running():
            process.send(number)
        status = process.wait()
        report.seconds.append(time.monotonic() - signal_time)
        report.saved += "stopped after step" in process.log.read_text()
        resumed = TrainProcess(workdir, options, env).wait()
        statuses = status, resumed
        if statuses == (128 + number, 0) and read_outputs(workdir) == reference.outputs:
            report.passed += 1
        else:
            report.errors.append(f"run {i}: status {status}, then {resumed}: see {process.log}")
    return report


def main(runs: int) -> bool:
    """Prints the reports of both signals; returns whether all is well."""
    passed = True
    for number in (signal.SIGTERM, signal.SIGINT):
        report = campaign(runs, number)
        print(
            f"{number.name}: {report.passed} of {runs}, {report.saved} of them with a step saved,\n"
            f"  at most {max(report.seconds):.1f} s from the signal to the end"
        )
        print(*report.errors, sep="\n", end="", flush=True)
        passed &= report.passed == runs
    return passed
