"""The runs of a sweep: joined to ensembles where possible, trained, and read."""

import contextlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from resflax.cli.grid import Texts
from resflax.data import Dataset
from resflax.data.fake import is_fake
from resflax.errors import UserError
from resflax.progress import ProgressMeter
from resflax.run.config_diff import flatten_config
from resflax.run.run_summary import RunSummary, read_run
from resflax.run.signals import Interrupt
from resflax.train import build, check_config, fit
from resflax.train.dataset import build_dataset
from resflax.train.ensemble import MEMBER_KEYS, join_configs
from resflax.train.monitor import DivergedError
from resflax.weights import PretrainedConfig

MAX_NAME = 60  # characters of the name of a folder


class SweepRun(NamedTuple):
    """A run of the grid: the texts of its keys, and the config that they give."""

    texts: Texts
    config: ConfigDict


class Job(NamedTuple):
    """Runs that are trained as one program, or one run.

    Attributes:
      name: of its folder.
      config: of the ensemble or the run.
      texts: texts of each member.
    """

    name: str
    config: ConfigDict
    texts: list[Texts]


def plan_jobs(runs: Sequence[SweepRun], max_members: int) -> list[Job]:
    """Returns the programs that train the runs of a sweep.

    Runs that differ only in what the members of an ensemble may differ in are one ensemble, unless
    it is refused, as for a dataset of noise with the seed of the run.

    Args:
      runs: of the grid.
      max_members: largest size of an ensemble.
    """
    groups: dict[str, list[SweepRun]] = {}
    for run in runs:
        shared = {k: v for k, v in flatten_config(run.config).items() if k not in _member_keys()}
        groups.setdefault(repr(shared), []).append(run)
    jobs: list[Job] = []
    for group in groups.values():
        for first in range(0, len(group), max_members):
            jobs += _join(group[first : first + max_members], len(jobs))
    return jobs


def check_distinct(runs: Sequence[SweepRun]) -> None:
    """Raises `UserError` if two runs of the grid are the same, such as those of 0.1 and 1e-1."""
    texts: dict[str, Texts] = {}
    for run in runs:
        same = texts.setdefault(repr(flatten_config(run.config)), run.texts)
        if same is not run.texts:
            key = next(key for key in same if same[key] != run.texts[key])
            raise UserError(
                f"--grid has the values {same[key]} and {run.texts[key]} of config.{key}, which are"
                " equal: expected different values"
            )


def check_jobs(jobs: Sequence[Job]) -> None:
    """Builds the run of each job, without training, so that all are refused before the first.

    Raises:
      UserError: if a run does not fit the dataset, the model or the devices.
    """
    opened: dict[str, Dataset] = {}

    def open_dataset(config: ConfigDict, pretrained: PretrainedConfig | None) -> Dataset:
        keys = ("dataset", "data", "seed", "eval_sets")
        key = repr([pretrained, *(config[key] for key in keys)])
        if key not in opened:
            opened.clear()  # one at a time is in memory
            opened[key] = build_dataset(config, pretrained)
        return opened[key]

    if len(jobs) < 2:  # training it builds it at once
        return
    with contextlib.closing(ProgressMeter(len(jobs), file=sys.stderr)) as meter:
        for job in jobs:
            with naming(job.name):
                build(job.config, open_dataset=open_dataset)
            meter.update(1, f"checked {job.name}")


@contextlib.contextmanager
def naming(run: str, keys: Iterable[str] | None = None) -> Iterator[None]:
    """Puts the name of a run before the message of a `UserError`, if it names one of the keys."""
    try:
        yield
    except UserError as e:
        if keys is None or any(key in str(e) for key in keys):
            raise UserError(f"{run}: {e}") from e
        raise


def _member_keys() -> tuple[str, ...]:
    return ("seed", *MEMBER_KEYS.values())


def _join(group: Sequence[SweepRun], number: int) -> list[Job]:
    """Returns the job of an ensemble of all runs, or one for each run."""
    joined = None
    if len(group) > 1 and not is_fake(group[0].config.dataset):
        joined = join_configs([run.config for run in group])
    if joined is not None:
        try:
            check_config(joined)
        except UserError:
            joined = None
    if joined is None:
        return [
            Job(_name(number + k, run.texts), run.config, [run.texts])
            for k, run in enumerate(group)
        ]
    texts = [run.texts for run in group]
    shared = {key: text for key, text in texts[0].items() if all(t[key] == text for t in texts)}
    return [Job(_name(number, shared, f"{len(group)}-members"), joined, texts)]


def _name(number: int, texts: Texts, suffix: str = "") -> str:
    """Returns the name of a job's folder.

    >>> _name(3, {"optimizer": "adamw", "decay_epochs": "(1, 2)"}, "2-members")
    '003-optimizer=adamw-decay_epochs=_1__2_-2-members'
    """
    words = [f"{key}={text}" for key, text in texts.items()] + [suffix] * bool(suffix)
    return re.sub(r"[^\w.=+-]", "_", f"{number:03d}-{'-'.join(words)}")[:MAX_NAME]


def train_job(
    job: Job, workdir: Path, interrupt: Interrupt, *, silent: bool
) -> list[dict[str, Any]]:
    """Trains a job, or resumes it, and returns the figures of each of its runs.

    Returns:
      For each run "texts", "where" (its weights, as other commands take them), "diverged_at" (0 if
      it has not) and, for each split that was evaluated, its last accuracy and loss, None for a run
      that diverged.

    Raises:
      UserError: if the run cannot be trained, except that its loss is not finite.
      InterruptedRunError: after a signal.
    """
    diverged = [0] * len(job.texts)
    try:
        results = fit(job.config, workdir, interrupt=interrupt, silent=silent)
        if len(job.texts) > 1:
            diverged = [member.get("diverged_at", 0) for member in results["members"]]
    except DivergedError as e:
        diverged = list(e.diverged_at)
    run = read_run(workdir)
    return [
        {
            "texts": texts,
            "where": f"{workdir}{f'#{k}' if len(job.texts) > 1 else ''}",
            "diverged_at": diverged[k],
            **_figures(run, k if len(job.texts) > 1 else None, is_diverged=bool(diverged[k])),
        }
        for k, texts in enumerate(job.texts)
    ]


def _figures(run: RunSummary, member: int | None, *, is_diverged: bool) -> dict[str, float | None]:
    """Returns the figures of a member, or of the run as a whole, which may be an ensemble."""
    figures: dict[str, float | None] = {}
    for split in ("validation", "test"):
        for key in ("accuracy", "loss"):
            value, members = run.last(split, key), run.last(split, "members")
            if value is not None or (is_diverged and split == "test"):
                if member is not None:
                    value = members[key][member] if members else None
                figures[f"{split}_{key}"] = None if is_diverged else value
    return figures
