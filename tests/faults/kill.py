"""Runs that are killed at random moments, and restarted until they finish."""

import json
import random
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm
from train_process import (
    Reference,
    TrainProcess,
    make_env,
    read_outputs,
    read_records,
    reference_run,
)

MOMENTS = ("any time", "compilation", "step", "evaluation", "save", "manifest")
# Time for the children of a killed process to end.
CHILD_SECONDS = 5.0


@dataclass
class Report:
    """Outcome of a campaign.

    Attributes:
      identical: number of runs whose outputs equal those of the uninterrupted run.
      kills: number of kills at each of `MOMENTS`.
      max_kills: largest number of kills of one run.
      remaining: processes that outlived a killed trainer.
      errors: one line for each other run.
    """

    identical: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    max_kills: int = 0
    remaining: list[int] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def is_at(moment: str, process: TrainProcess, workdir: Path, length: int) -> bool:
    """Returns whether a process is at one of `MOMENTS`.

    Args:
      moment: other than "any time".
      process: process of the run.
      workdir: workdir of the run.
      length: number of lines that the log or the records had when the process started.
    """
    folder = workdir / "checkpoints"
    if moment == "compilation":
        return process.log.read_text().count("compiling") > length
    if moment == "step":
        return len(read_records(workdir)) > length
    if moment == "evaluation":
        # Every fourth step has a record; another one is that of an epoch's end, before evaluation.
        last = json.loads((read_records(workdir) or ["{}"])[-1])
        return last.get("split") == "train" and last["step"] % 4 != 0
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    if moment == "save":
        return any("tmp" in name for name in names)
    return any(n.isdecimal() and not (folder / n / "checksums.json").exists() for n in names)


def kill_at(
    moment: str, process: TrainProcess, workdir: Path, rng: random.Random, reference: Reference
) -> bool:
    """Kills a process at a moment, or just before its end; returns False if it ended before."""
    length = process.log.read_text().count("compiling") if moment == "compilation" else 0
    length = len(read_records(workdir)) if moment == "step" else length
    limit = rng.uniform(0.1, reference.seconds) if moment == "any time" else 30.0
    while process.is_running() and time.monotonic() - process.start_time < limit:
        if moment == "any time":
            if reference.is_almost_finished(workdir):
                break
        elif is_at(moment, process, workdir, length):
            time.sleep(rng.choice([0, 0, 0.002, 0.01, 0.1, 0.5]))
            break
        time.sleep(0.0005)
    if not process.is_running():
        return False
    process.kill()
    return True


def kill_and_resume(
    number: int, reference: Reference, max_kills: int, folder: Path, report: Report
) -> None:
    """Kills a run once or several times, lets it finish, and adds the outcome to the report."""
    rng = random.Random(number)
    workdir = folder / f"run{number}"
    # One run of five has its own cache, and can be killed while it writes there.
    cache = folder / f"cache{number}" if number % 5 == 4 else reference.folder / "cache"
    env, killed = make_env(cache), []
    for kills in range(min(max_kills, rng.choice([1, 1, 2, 2, 3, 4]))):
        moment = MOMENTS[(number + kills) % len(MOMENTS)]
        process = TrainProcess(workdir, reference.options, env)
        if not kill_at(moment, process, workdir, rng, reference):
            break
        report.kills[moment] += 1
        killed.append((process, time.monotonic()))
    status = TrainProcess(workdir, reference.options, env).wait()
    for process, kill_time in killed:
        time.sleep(max(0.0, kill_time + CHILD_SECONDS - time.monotonic()))
        report.remaining += process.remaining()
    report.max_kills = max(report.max_kills, len(killed))
    if status == 0 and read_outputs(workdir) == reference.outputs:
        report.identical += 1
    else:
        report.errors.append(f"run {number}: status {status}, see {workdir}.log")


def campaign(runs: int, pipeline: str, max_kills: int = 4, parallel: int = 2) -> Report:
    """Kills runs of one of `PIPELINES`, some in parallel, and compares their outputs."""
    reference, report = reference_run(pipeline), Report()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    with ThreadPoolExecutor(parallel) as pool:
        futures = [
            pool.submit(kill_and_resume, number, reference, max_kills, folder, report)
            for number in range(runs)
        ]
        for future in tqdm(futures, f"kill, {pipeline}"):
            future.result()
    return report


def main(runs: int) -> bool:
    """Prints the reports of all pipelines; returns whether all is well."""
    passed, quarter = True, runs // 4
    counts = {"device": runs - 2 * quarter, "workers": quarter, "ensemble": quarter}
    for pipeline, count in counts.items():
        report = campaign(count, pipeline)
        print(
            f"kill, {pipeline}: {report.identical} of {count} bit-identical,"
            f" {report.kills.total()} kills ({dict(report.kills)}), up to {report.max_kills} per"
            f" run;\n  processes remaining after 5 s: {len(report.remaining)}"
        )
        print(*report.errors, sep="\n", end="", flush=True)
        passed &= report.identical == count and not report.remaining
    return passed
