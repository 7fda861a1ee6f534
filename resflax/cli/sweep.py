"""Trains a grid of runs, and prints a table of their results.

    resflax sweep --config=configs/digits.py --grid "learning_rate=0.05,0.1;seed=0..4"
    resflax sweep --config.model=cifar_resnet8 --grid "optimizer=sgd,adamw;seed=0..2" --dry-run

Each combination of the values of --grid is the run of `resflax train` with these keys; the other
arguments are those of `resflax train`. Runs that differ only in seed, learning_rate, weight_decay,
label_smoothing, data.mixup or spec.drop_path are trained as one ensemble, in one program; others
one after another. The table has the mean and the standard deviation over the seeds.

The same command resumes a sweep that was stopped: finished runs are read, and the one in progress
resumes from its last checkpoint.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from resflax.cli.flags import TrainCommand, parse
from resflax.cli.grid import EXAMPLE, MAX_RUNS, Texts, combinations, parse_grid
from resflax.cli.sweep_jobs import (
    Job,
    SweepRun,
    check_distinct,
    check_jobs,
    naming,
    plan_jobs,
    train_job,
)
from resflax.cli.sweep_table import describe_best, summarize, sweep_table
from resflax.errors import Parser, Report, UserError, print_to_stderr, quantity
from resflax.files import path_type
from resflax.run.signals import Interrupt, InterruptedRunError
from resflax.runtime import enable_compilation_cache
from resflax.study.study_dir import StudyDir, part_file
from resflax.train import check_config
from resflax.train.config import to_json_dict

DEFAULT_MEMBERS = 16


def main(arguments: list[str]) -> None:
    """Trains a sweep, or resumes it.

    Raises:
      UserError: if an argument is invalid, before anything is trained.
      InterruptedRunError: after a signal.
    """
    args, train_arguments = _parse(arguments)
    base = parse(train_arguments)
    _check_base(base)
    runs = []
    for texts in combinations(parse_grid(args.grid)):
        with naming(_describe(texts), keys=texts):
            runs.append(SweepRun(texts, parse([*train_arguments, *_flags(texts)]).config))
            check_config(runs[-1].config)
    check_distinct(runs)
    jobs = plan_jobs(runs, args.members)
    report = print_to_stderr if args.json else print
    report(f"{quantity(len(runs), 'run')} as {quantity(len(jobs), 'program')}")
    if args.dry_run:
        print("\n".join(_dry_lines(jobs, train_arguments)))
        return
    out = args.out or Path(f"runs/sweep-{base.name}")
    check_jobs([job for job in jobs if not part_file(out, job.name).exists()])
    settings = {"grid": args.grid, "members": args.members, "config": to_json_dict(base.config)}
    enable_compilation_cache()
    with StudyDir.open(out, settings) as study, Interrupt() as interrupt:
        rows = _train_all(study, jobs, interrupt, report, silent=args.json)
        values = {"rows": rows, "summary": summarize(rows)}
        study.write_result("sweep", values)
    if args.json:
        print(json.dumps(values, indent=1))
    else:
        print(f"\n{sweep_table(values['summary'])}\n\n{describe_best(values, train_arguments)}")


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns the sweep's own arguments, and those of `resflax train`."""
    parser = Parser(
        prog="resflax sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--grid", required=True, help=f'keys and values, such as "{EXAMPLE}"')
    parser.add_argument("--out", type=path_type, help="directory; default: runs/sweep-NAME")
    parser.add_argument(
        "--members",
        type=int,
        default=DEFAULT_MEMBERS,
        help=f"largest ensemble; 1: one run after another; default: {DEFAULT_MEMBERS}",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the runs, and train nothing")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    args, rest = parser.parse_known_args(arguments)
    if not 1 <= args.members <= 1024:
        raise UserError(f"--members is {args.members}: expected 1 to 1024")
    count = 1
    for values in parse_grid(args.grid).values():
        count *= len(values)
    if count > MAX_RUNS:
        raise UserError(f"--grid has {count} runs: expected at most {MAX_RUNS}")
    return args, rest


def _check_base(base: TrainCommand) -> None:
    """Raises `UserError` if an argument of `resflax train` has no meaning in a sweep."""
    if base.workdir:
        raise UserError(f"--workdir is {base.workdir!r}: expected --out for the folder of a sweep")
    if base.resume != "auto":
        raise UserError(f"--resume is {base.resume!r}: expected another --out for a new sweep")
    if base.distributed.distributed:
        raise UserError("--distributed is given: a sweep trains in one process")


def _describe(texts: Texts) -> str:
    return " ".join(f"{key}={text}" for key, text in texts.items())


def _flags(texts: dict[str, str]) -> list[str]:
    return [f"--config.{key}={text}" for key, text in texts.items()]


def _dry_lines(jobs: list[Job], train_arguments: list[str]) -> list[str]:
    """Returns the command of each run, below the name of the program that trains it."""
    lines = []
    for job in jobs:
        lines.append(job.name)
        for texts in job.texts:
            lines.append("  " + shlex.join(["resflax", "train", *train_arguments, *_flags(texts)]))
    return lines


def _train_all(
    study: StudyDir, jobs: list[Job], interrupt: Interrupt, report: Report, *, silent: bool
) -> list[dict[str, Any]]:
    """Trains all jobs that are not finished; returns the rows of all runs."""
    rows: list[dict[str, Any]] = []
    for k, job in enumerate(jobs):
        is_done = study.has_part(job.name)
        report(f"{k + 1} of {len(jobs)}: {job.name}{', finished before' if is_done else ''}")

        def compute(job: Job = job) -> list[dict[str, Any]]:
            return train_job(job, study.path / job.name, interrupt, silent=silent)

        try:
            rows += study.part(job.name, compute)
        except InterruptedRunError as e:
            message = f"stopped: the same command with --out={study.path} resumes"
            raise InterruptedRunError(e.status - 128, message) from e
        if interrupt.received:
            raise InterruptedRunError(
                interrupt.received, f"stopped: the same command with --out={study.path} resumes"
            )
    sys.stdout.flush()
    return rows
