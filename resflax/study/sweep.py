"""Trains a network with several seeds and learning rates at once, in one `vmap`."""

import contextlib
import dataclasses
import math
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float
from ml_collections import ConfigDict

from resflax.data import Dataset, batch_indices, eval_batches
from resflax.errors import UserError
from resflax.progress import ProgressMeter
from resflax.run.checkpoint import Checkpoint
from resflax.run.checkpointer import Checkpointer
from resflax.study.study_dir import JSON, OPTION, Codec, StudyDir
from resflax.train import TrainState, create_state, stack_states
from resflax.train.builders import (
    build_normalizer,
    build_optimizer,
    build_schedule,
    build_steps,
    total_steps,
)
from resflax.train.input_pipeline import limit_in_flight
from resflax.train.trainer import is_last_of_epochs

# Minimum seconds between two snapshots: a stopped study loses the work since the last one.
SNAPSHOT_SECONDS = 20.0
METRICS = ("accuracy", "loss")
Curves = dict[str, Any]


class SweepState(NamedTuple):
    """Progress of a sweep after a training step.

    Attributes:
      states: train states of all members, stacked.
      history: training error, test error and loss, `(3, members)`, for each finished epoch.
      window: `METRICS` of each step since then, float32 `(members,)`.
    """

    states: TrainState
    history: list[Any]
    window: list[dict[str, Any]]


def train_sweep(
    model: nn.Module,
    dataset: Dataset,
    config: ConfigDict,
    *,
    seeds: Sequence[int],
    rates: Sequence[float],
    checkpoints: Path | None = None,
    on_step: Callable[[str], None] = lambda text: None,
    on_resume: Callable[[int], None] = lambda steps: None,
) -> tuple[TrainState, Curves]:
    """Trains one member for each learning rate and seed, all of them in one `vmap`.

    Each member equals, to rounding, a network trained alone with the same `config`, seed and
    learning rate: the same initialization, the same examples in the same order.

    Args:
      model: the network.
      dataset: a dataset in memory; the training split is put on the device.
      config: see `resflax.train.default_config`; its seed and learning rate are not used.
      seeds: seeds of initialization and example order.
      rates: peak learning rates.
      checkpoints: directory for snapshots. A stopped sweep resumes from the last one, and ends with
        the same bits as one that was not stopped.
      on_step: called after each step with the number of finished epochs, as text.
      on_resume: called once, with the number of steps that an earlier process took.

    Returns:
      The final states, with a leading axis of members (rates x seeds), and the curves: "train" and
      "test" error in percent and the training "loss" in nats, each a nested list (rate, seed,
      epoch). The training error of an epoch is the mean over its batches, each before its update. A
      member whose loss is not finite has an error of 100 %.
    """
    members, examples = list(product(rates, seeds)), len(dataset.train)
    steps = total_steps(config, examples)
    optimizer = _make_optimizer(config, examples)
    initial = stack_states([_init(model, optimizer, dataset, *member) for member in members])
    step_fn, eval_fn = _compile_steps(model, dataset, config, optimizer)
    with contextlib.closing(_Snapshots(checkpoints)) as snapshots:
        states, history, window = snapshots.restore(initial)
        first = int(states.step[0])
        on_resume(first)
        for step in range(first + 1, steps + 1):
            order = {
                seed: batch_indices(seed, step - 1, config.batch_size, examples) for seed in seeds
            }
            index = np.stack([order[seed] for _, seed in members]).astype(np.int32)
            states, metrics = step_fn(states, index)
            window.append({key: metrics[key] for key in METRICS})
            limit_in_flight(window)
            if step == steps or is_last_of_epochs(
                step, batch_size=config.batch_size, examples=examples
            ):
                history.append(_summarize_epoch(window, eval_fn(states)).tolist())
                window = []
            snapshots.save_if_due(SweepState(states, history, window))
            on_step(f"epoch {len(history)} of {config.epochs}")
    values = np.stack(history, -1).reshape(3, len(rates), len(seeds), -1)
    return states, dict(zip(("train", "test", "loss"), values.tolist(), strict=True))


def train_networks(
    study: StudyDir,
    models: dict[str, Any],
    dataset: Dataset,
    config: ConfigDict,
    *,
    seeds: int,
    rates: Sequence[float],
    extract: Callable[[TrainState, Curves], Any] = lambda states, curves: curves,
    codec: Codec = JSON,
) -> dict[str, Any]:
    """Trains every network with seeds 0, 1, ... and returns `extract(states, curves)` of each.

    Each network is a part of the study: finished ones are read, and the one in progress resumes.
    """
    steps = total_steps(config, len(dataset.train))
    cost = {name: sum(model.spec.depths) + 3 for name, model in models.items()}  # of a step

    def train(name: str) -> Any:
        trained = train_sweep(
            models[name],
            dataset,
            config,
            seeds=range(seeds),
            rates=rates,
            checkpoints=study.checkpoints(name),
            on_step=lambda text: meter.update(cost[name], f"{name}, {text}"),
            on_resume=lambda done: meter.skip(done * cost[name]),
        )
        return extract(*trained)

    parts = {}
    with contextlib.closing(ProgressMeter(steps * sum(cost.values()))) as meter:
        for name in models:
            if study.has_part(name, codec):
                meter.skip(steps * cost[name])
            parts[name] = study.part(name, partial(train, name), codec)
    return parts


class _Snapshots:
    """Checkpoints of a sweep, at most one every `SNAPSHOT_SECONDS`; none without a folder."""

    def __init__(self, folder: Path | None) -> None:
        self._folder, self._saved_at = folder, time.monotonic()
        self._checkpointer = self._open() if folder else None

    def _open(self) -> Checkpointer:
        assert self._folder
        return Checkpointer(self._folder, max_to_keep=2, option=OPTION)

    def restore(self, initial: TrainState) -> SweepState:
        """Returns the last snapshot, or the start of the sweep if there is none.

        A snapshot that is corrupt, or of another network, is skipped with a warning on stderr.
        """
        start = SweepState(initial, [], [])
        if not self._checkpointer:
            return start
        warnings = self._checkpointer.warnings
        try:
            saved = self._checkpointer.restore({"states": initial})
        except UserError as e:
            saved = None
            warnings.append(f"the snapshot in {self._folder} was deleted: {e}")
            self._clear()
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
        if saved is None:
            return start
        states = jax.tree.map(jnp.array, saved.tree["states"])
        window = [
            {key: np.asarray(values, np.float32) for key, values in metrics.items()}
            for metrics in saved.metadata["window"]
        ]
        return SweepState(states, saved.metadata["history"], window)

    def _clear(self) -> None:
        """Deletes all snapshots, so that their steps can be saved again."""
        if self._checkpointer and self._folder:
            self._checkpointer.close(cancel_verification=True)
            shutil.rmtree(self._folder)
            self._checkpointer = self._open()

    def save_if_due(self, sweep: SweepState) -> None:
        """Starts to save, unless the last snapshot is less than `SNAPSHOT_SECONDS` old."""
        if not self._checkpointer or time.monotonic() - self._saved_at < SNAPSHOT_SECONDS:
            return
        states, window = jax.device_get((sweep.states, sweep.window))
        # Python writes and reads floats without rounding.
        metadata = {
            "history": list(sweep.history),
            "window": [{key: m[key].tolist() for key in METRICS} for m in window],
        }
        self._checkpointer.save(Checkpoint(int(states.step[0]), {"states": states}, metadata))
        self._saved_at = time.monotonic()

    def close(self) -> None:
        """Waits for the last snapshot."""
        if self._checkpointer:
            self._checkpointer.close(cancel_verification=True)


def _make_optimizer(config: ConfigDict, examples: int) -> optax.GradientTransformation:
    """Makes the config's optimizer, with the learning rate in its state, one per member."""
    unit = ConfigDict(config)
    unit.learning_rate = 1.0
    return optax.chain(
        build_optimizer(config, build_schedule(unit, examples)),
        optax.inject_hyperparams(optax.scale)(step_size=1.0),
    )


def _init(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    dataset: Dataset,
    rate: float,
    seed: int,
) -> TrainState:
    state = create_state(model, optimizer, seed, dataset.image_shape)
    opt_state = optax.tree_utils.tree_set(state.opt_state, step_size=jnp.asarray(rate, jnp.float32))
    return dataclasses.replace(state, opt_state=opt_state)


def _compile_steps(
    model: nn.Module, dataset: Dataset, config: ConfigDict, optimizer: optax.GradientTransformation
) -> tuple[Callable[..., Any], Callable[[TrainState], np.ndarray]]:
    """Returns `(states, index) -> (states, metrics)` and `states -> test errors in percent`."""
    train_step, eval_step = build_steps(config, model, optimizer, build_normalizer(dataset.train))
    images, labels = jnp.asarray(dataset.train.images), jnp.asarray(dataset.train.labels)

    @partial(jax.jit, donate_argnums=0)
    def step(states: TrainState, index: Any, images: Any, labels: Any) -> tuple[TrainState, Any]:
        batch = {"image": images[index], "label": labels[index], "index": index}
        return jax.vmap(train_step)(states, batch)

    eval_all = jax.jit(jax.vmap(eval_step, in_axes=(0, None)))

    def evaluate(states: TrainState) -> np.ndarray:
        batches = eval_batches(dataset.test, batch_size=config.batch_size)
        sums = [jax.device_get(eval_all(states, batch)) for batch in batches]
        correct = sum(part["correct"] for part in sums)
        return 100 * (1 - correct / sum(part["count"] for part in sums))

    return lambda states, index: step(states, index, images, labels), evaluate


def _summarize_epoch(
    window: list[Any], test_error: Float[np.ndarray, " members"]
) -> Float[np.ndarray, "3 members"]:
    """Returns training error, test error and loss of every member."""
    fetched = jax.device_get(window)
    accuracy, loss = (np.mean([m[key] for m in fetched], 0) for key in METRICS)
    diverged = ~np.isfinite(loss)
    train_error = np.where(diverged, 100.0, 100 * (1 - accuracy))
    loss = np.where(diverged, math.log(1e4), loss)  # JSON has no infinity
    return np.stack([train_error, np.where(diverged, 100.0, test_error), loss])
