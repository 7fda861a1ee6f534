"""Trains a config in a workdir: a whole run, from Python or the command line."""

import itertools
from datetime import datetime
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from resflax.data.fingerprint import Fingerprint
from resflax.data.fingerprint_diff import fingerprint_diff
from resflax.data.kinds import FILE_PREFIXES
from resflax.distributed.processes import (
    broadcast_json,
    is_main_process,
    lost_process_as_user_error,
)
from resflax.errors import UserError, unknown
from resflax.files import user_path
from resflax.kernels import describe_backend
from resflax.run.metric_writer import check_writers, parse_writers
from resflax.run.progress import RunProgress
from resflax.run.signals import Interrupt
from resflax.run.workdir import ExistingRun, Workdir
from resflax.train import loop
from resflax.train.config import (
    INCREASABLE_KEYS,
    RESUMABLE_KEYS,
    default_config,
    to_json_dict,
)
from resflax.train.config_rules import check_config
from resflax.train.results import describe_accuracies
from resflax.train.run_builder import build
from resflax.train.teacher import check_teacher
from resflax.train.trainer import Trainer
from resflax.weights import PretrainedConfig

RESUME = ("auto", "never")
# Keys in which the config of a resumed run may differ. Moved data must have the same fingerprint.
MAY_DIFFER: dict[str, Any] = {
    "resumable": RESUMABLE_KEYS,
    "increasable": INCREASABLE_KEYS,
    "movable": {"dataset": FILE_PREFIXES},
    "defaults": to_json_dict(default_config()),
}


def default_workdir(name: str) -> Path:
    """Returns an unused path under `runs/`."""
    first = f"runs/{name}-{datetime.now():%Y%m%d-%H%M%S}"
    names = itertools.chain([first], (f"{first}-{n}" for n in itertools.count(2)))
    return next(path for path in map(Path, names) if not path.exists())


def fit(
    config: ConfigDict,
    workdir: str | Path | None = None,
    *,
    resume: str = "auto",
    interrupt: Interrupt | None = None,
    silent: bool = False,
    notes: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Trains a config, or resumes its run, and returns the results.

    The same as `train.py`, with several processes too (each calls it, after
    `jax.distributed.initialize`).

    Args:
      config: see `default_config`.
      workdir: directory of the run; by default a new one under `runs/`.
      resume: "auto" to resume the run in the workdir, if there is one; "never" to start a new run
        in the first unused directory of `workdir`, `workdir`-2, ...
      interrupt: stops the run after a signal; by default signals are not handled.
      silent: print nothing.
      notes: lines that are printed before those of the run.

    Raises:
      UserError: if the config is invalid, does not fit dataset, devices or workdir; if a loss is
        not finite; if files cannot be written.
      InterruptedRunError: after a signal; the run is saved.
    """
    if resume not in RESUME:
        raise unknown("resume", resume, RESUME)
    check_config(config)
    check_writers(parse_writers(config.log_to))
    path = user_path(workdir or default_workdir(config.model or "pretrained"), "workdir")
    with lost_process_as_user_error():
        existing = ExistingRun()
        if is_main_process():
            path = Workdir.next_free(path) if resume == "never" else path
            existing = Workdir.inspect(path, to_json_dict(config), **MAY_DIFFER)
        results, pretrained = broadcast_json(
            [existing.results, (existing.metadata or {}).get("pretrained")]
        )
        silent = silent or not is_main_process()
        if results:
            progress = RunProgress(results["steps"], config.epochs, silent=silent)
            progress.print("run already finished")
        else:
            if pretrained:
                pretrained = PretrainedConfig.from_json_dict(pretrained, import_functions=True)
            run = build(config, pretrained=pretrained)
            progress = RunProgress(run.steps, config.epochs, silent=silent)
            if existing.metadata and "data" in existing.metadata:
                _check_data(existing.metadata["data"], run.metadata["data"], path)
            elif existing.metadata:
                progress.print(
                    "the checkpoint does not record its data: resuming without comparing them"
                )
            old_teacher = (existing.metadata or {}).get("teacher")
            check_teacher(old_teacher, run.metadata["teacher"], path)
            for note in notes:
                progress.print(note)
            results = _train(Trainer(run), path, progress, interrupt)
        progress.close()
        progress.print(_summary(results, path))
        return results


def _train(
    trainer: Trainer, path: Path, progress: RunProgress, interrupt: Interrupt | None
) -> dict[str, Any]:
    with _open(path, trainer.config) as opened:
        notes = (*opened.notes, *trainer.run.notes, trainer.dataset.describe_splits())
        for line in (*notes, describe_backend(trainer.config.dtype), trainer.summary()):
            progress.print(line)
        return loop.fit(trainer, opened, progress, interrupt)


def _check_data(old: Fingerprint, new: Fingerprint, path: Path) -> None:
    """Raises `UserError` if the data of the run in `path` have changed."""
    changes = fingerprint_diff(old, new)
    if changes:
        raise UserError(
            f"the data of the run in {path} have changed: {'; '.join(changes)}: restore them, or"
            " use --resume=never for a new run"
        )


def _summary(results: dict[str, Any], path: Path) -> str:
    """Returns a line with the last and the best accuracy of each split."""
    skipped, steps, best_by = results["skipped_examples"], results["steps"], results["best_by"]
    last = describe_accuracies(
        {split: results.get(f"{split}_accuracy") for split in ("validation", "test")}
    )
    best = describe_accuracies({best_by: results[f"best_{best_by}_accuracy"]})
    notes = f"; {skipped} skipped, see skipped.txt" if skipped else ""
    notes += f"; waited for data in {100 * results.get('data_wait', 0):.0f} % of the training time"
    return (
        f"{last} on {results['test_examples']} examples, at step {steps}; best {best}, at step"
        f" {results['best_step']}{notes}; saved in {path}"
    )


def _open(path: Path, config: ConfigDict) -> Workdir:
    """Opens the workdir: for writing in the main process, without writing in the others."""
    if not is_main_process():
        return Workdir(path, writes=False)
    return Workdir.open(path, to_json_dict(config), **MAY_DIFFER)
