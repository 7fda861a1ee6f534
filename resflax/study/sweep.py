"""Trains a network with several seeds and learning rates at once, as one ensemble."""

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from resflax.data import Dataset
from resflax.progress import ProgressMeter
from resflax.run.checkpoint import restore_latest
from resflax.run.progress import RunProgress
from resflax.run.workdir import Workdir
from resflax.study.study_dir import JSON, OPTION, Codec, StudyDir
from resflax.train import TrainState
from resflax.train.builders import total_steps
from resflax.train.config import RESUMABLE_KEYS, to_json_dict
from resflax.train.loop import fit
from resflax.train.monitor import DivergedError
from resflax.train.run import Run
from resflax.train.run_builder import build
from resflax.train.trainer import Trainer

# Minimum seconds between two checkpoints: a stopped study loses the work since the last one.
CHECKPOINT_SECONDS = 20.0
# Loss of a member that diverged, in nats: JSON has no infinity.
DIVERGED_LOSS = 9.21  # a probability of one in ten thousand
Curves = dict[str, Any]


def train_sweep(
    model: nn.Module,
    dataset: Dataset,
    config: ConfigDict,
    *,
    seeds: Sequence[int],
    rates: Sequence[float],
    workdir: Path | None = None,
    progress: RunProgress | None = None,
) -> tuple[TrainState | None, Curves]:
    """Trains one member for each learning rate and seed, all of them as one ensemble.

    Each member equals, to rounding, a network trained alone with the same `config`, seed and
    learning rate.

    Args:
      model: the network.
      dataset: a dataset in memory.
      config: see `resflax.train.default_config`; its seed and learning rate are not used.
      seeds: seeds of initialization and example order.
      rates: peak learning rates.
      workdir: directory of the run. A stopped sweep resumes from its last checkpoint, and ends with
        the same bits as one that was not stopped. By default a temporary one.
      progress: shows the progress; by default nothing is shown.

    Returns:
      The final states, with a leading axis of members (rates x seeds), and the curves: "train" and
      "test" error in percent and the training "loss" in nats, each a nested list (rate, seed,
      epoch). The training error of an epoch is the mean over its batches, each before its update. A
      member whose loss is not finite has an error of 100 % from then on. If all members have
      diverged, the training ends, and the states are None.

    Raises:
      UserError: if the directory cannot be written.
    """
    run = build(_sweep_config(config, seeds, rates), model=model, dataset=dataset)
    trainer, progress = Trainer(run), progress or RunProgress(run.steps, silent=True)
    with contextlib.ExitStack() as stack:
        path = workdir or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        opened = stack.enter_context(
            Workdir.open(path, to_json_dict(run.config), resumable=RESUMABLE_KEYS, option=OPTION)
        )
        states, diverged_at = None, [0] * run.size
        try:
            results = fit(trainer, opened, progress)
            states = _final_states(run, path)
            diverged_at = [m.get("diverged_at", 0) for m in results.get("members", [{}])]
        except DivergedError as e:
            diverged_at = list(e.diverged_at)
            progress.print(
                f"warning: no loss is finite after step {max(diverged_at)}: the error is 100 %"
            )
        records = opened.records.all()
    steps = [step for step in range(1, run.steps + 1) if trainer.is_eval_step(step)]
    values = _curves(records, steps, diverged_at).reshape(3, len(rates), len(seeds), -1)
    return states, dict(zip(("train", "test", "loss"), values.tolist(), strict=True))


def _sweep_config(config: ConfigDict, seeds: Sequence[int], rates: Sequence[float]) -> ConfigDict:
    """Returns the config of the ensemble of all seeds and rates, with one record per epoch."""
    config = config.copy_and_resolve_references()
    members = list(product(rates, seeds))
    if len(members) == 1:
        (config.learning_rate, config.seed) = members[0]
    else:
        config.ensemble.update(
            size=len(members),
            seeds=tuple(seed for _, seed in members),
            learning_rate=tuple(rate for rate, _ in members),
        )
    config.eval_every_epochs = 1
    config.log_every_steps = 2**31 - 1  # evaluations write a record of the steps before them
    config.checkpoint_every_minutes = CHECKPOINT_SECONDS / 60
    return config


def _final_states(run: Run, workdir: Path) -> TrainState:
    """Reads the states at the end of a run."""
    start = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), run.abstract_state())
    template = {"state": start, "eval_batch_stats": start.batch_stats}
    states: TrainState = restore_latest(workdir / "checkpoints", template).tree["state"]
    return states if run.size > 1 else jax.tree.map(lambda leaf: leaf[None], states)


def _curves(
    records: list[dict[str, Any]], steps: Sequence[int], diverged_at: Sequence[int]
) -> Float[np.ndarray, "3 members epochs"]:
    """Returns training error, test error and loss of every member, by epoch.

    Args:
      records: of the run, which may have ended before its last step.
      steps: last step of each epoch.
      diverged_at: step at which each member diverged; 0 if it did not.
    """

    def column(split: str, key: str) -> Float[np.ndarray, "members epochs"]:
        values = np.full((len(diverged_at), len(steps)), np.nan)
        for row in records:
            if row["split"] == split:
                members = row["members"][key] if "members" in row else [row[key]]
                values[:, steps.index(row["step"])] = np.array(members, float)  # NaN for None
        return values

    diverged = [[0 < end <= step for step in steps] for end in diverged_at]
    errors = [
        np.where(diverged, 100.0, 100 * (1 - column(s, "accuracy"))) for s in ("train", "test")
    ]
    return np.stack([*errors, np.where(diverged, DIVERGED_LOSS, column("train", "loss"))])


class _NetworkProgress(RunProgress):
    """Progress of one network of a study, on the meter of all networks."""

    def __init__(self, meter: ProgressMeter, name: str, cost: float, config: ConfigDict) -> None:
        self.meter, self._name, self._cost, self._epochs = meter, name, cost, config.epochs
        self.step = 0

    def resume(self, step: int) -> None:
        """Counts the steps that earlier processes took."""
        self.meter.skip(self._cost * (step - self.step))
        self.step = step

    def show(self, activity: str) -> None:
        """Shows nothing, between two records."""

    def train(
        self, record: dict[str, Any], remaining: float | None, *, evaluates: bool = False
    ) -> None:
        """Shows the number of finished epochs."""
        del remaining, evaluates
        text = f"{self._name}, epoch {record['epoch']:.0f} of {self._epochs}"
        self.meter.update(self._cost * (record["step"] - self.step), text)
        self.step = record["step"]

    def evaluation(self, record: dict[str, Any], remaining: float | None) -> None:
        """Shows nothing: an evaluation follows each training record."""

    def print(self, line: str) -> None:
        """Prints a line about the network."""
        self.meter.print(f"{self._name}: {line}")

    def close(self) -> None:
        """Does nothing: the next network uses the same meter."""


def train_networks(
    study: StudyDir,
    models: dict[str, Any],
    dataset: Dataset,
    config: ConfigDict,
    *,
    seeds: int,
    rates: Sequence[float],
    extract: Callable[[TrainState | None, Curves], Any] = lambda states, curves: curves,
    codec: Codec = JSON,
) -> dict[str, Any]:
    """Trains every network with seeds 0, 1, ... and returns `extract(states, curves)` of each.

    Each network is a part of the study: finished ones are read, and the one in progress resumes.
    """
    steps = total_steps(config, len(dataset.train))
    cost = {name: sum(model.spec.depths) + 3 for name, model in models.items()}  # of a step
    parts = {}
    with contextlib.closing(ProgressMeter(steps * sum(cost.values()))) as meter:

        def train(name: str) -> Any:
            progress = _NetworkProgress(meter, name, cost[name], config)
            trained = train_sweep(
                models[name],
                dataset,
                config,
                seeds=range(seeds),
                rates=rates,
                workdir=study.workdir(name),
                progress=progress,
            )
            progress.resume(steps)  # skips those that are left if all members have diverged
            return extract(*trained)

        for name in models:
            if study.has_part(name, codec):
                meter.skip(steps * cost[name])
            parts[name] = study.part(name, partial(train, name), codec)
    return parts
