"""One network from several seeds and at several learning rates, trained as one program."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from resflax.data import Dataset, batch_indices, eval_batches
from resflax.study.folder import NUMBERS, Codec, Folder
from resflax.study.snapshot import Snapshot, SweepState
from resflax.study.told import Told
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

Curves = dict[str, Any]


def train_members(
    model: nn.Module,
    dataset: Dataset,
    config: ConfigDict,
    *,
    seeds: Sequence[int],
    rates: Sequence[float],
    tell: Callable[[str], None] = lambda text: None,
    skip: Callable[[int], None] = lambda steps: None,
    unfinished: Snapshot | None = None,
) -> tuple[TrainState, Curves]:
    """Trains a member for each learning rate and seed; all of them in one `vmap`.

    A member is what `config` with that `seed` and `learning_rate` trains alone, to rounding: the
    same initialisation, the same examples in the same order.

    Args:
      model: the network.
      dataset: what it is trained on; lies on the device as a whole.
      config: everything else, as `resflax.train.default_config`.
      seeds: of initialisation and order.
      rates: the schedule's largest learning rates.
      tell: called after each step with what is going on.
      skip: called once, with the number of steps that an earlier start has done.
      unfinished: where it is kept how far this is, and taken up if it was stopped. What was
        stopped ends at the same bits as what was not.

    Returns:
      The last states, with an axis of members (rates x seeds) in front; and the curves: "train"
      and "test" error in percent and "loss" (of training, in nats), each a list over rates of lists
      over seeds of lists over epochs. The training error is that of an epoch's batches as they were
      trained on. A member that diverged errs always.
    """
    members = list(product(rates, seeds))
    examples = len(dataset.train)
    steps = total_steps(config, examples)
    optimizer = _optimizer(config, examples)
    states = stack_states([_first(model, optimizer, dataset, *member) for member in members])
    step, evaluate = _steps(model, dataset, config, optimizer)
    states, history, window = (
        unfinished.resume(states) if unfinished else SweepState(states, [], [])
    )
    done = int(states.step[0])
    skip(done)
    for s in range(done + 1, steps + 1):
        order = {seed: batch_indices(seed, s - 1, config.batch_size, examples) for seed in seeds}
        index = np.stack([order[seed] for _, seed in members]).astype(np.int32)
        states, metrics = step(states, index)
        window.append(metrics)
        limit_in_flight(window)
        if s == steps or is_last_of_epochs(s, batch_size=config.batch_size, examples=examples):
            history.append(_epoch(window, evaluate(states)))
            window = []
        if unfinished:
            unfinished.keep(SweepState(states, history, window))
        tell(f"epoch {len(history)} of {config.epochs}")
    named = np.stack(history, -1).reshape(3, len(rates), len(seeds), -1)
    return states, dict(zip(("train", "test", "loss"), named.tolist(), strict=True))


def train_each(
    folder: Folder,
    models: dict[str, Any],
    dataset: Dataset,
    config: ConfigDict,
    *,
    seeds: int,
    rates: Sequence[float],
    take: Callable[[TrainState, Curves], Any] = lambda states, curves: curves,
    form: Codec = NUMBERS,
) -> dict[str, Any]:
    """What `take(states, curves)` takes of every network, by its name, trained from seeds 0, 1, ...

    Each is a part of the folder: kept from an earlier start, or trained now, going on from where
    an earlier start was stopped.
    """
    steps = total_steps(config, len(dataset.train))
    work = {name: sum(model.spec.depths) + 3 for name, model in models.items()}
    told = Told(total=steps * sum(work.values()))

    def train(name: str) -> Any:
        trained = train_members(
            models[name],
            dataset,
            config,
            seeds=range(seeds),
            rates=rates,
            tell=lambda text: told.work(work[name], f"{name}, {text}"),
            skip=lambda done: told.skip(done * work[name]),
            unfinished=folder.unfinished(name),
        )
        return take(*trained)

    parts = {}
    for name in models:
        if folder.has(name, form):
            told.skip(steps * work[name])
        parts[name] = folder.part(name, partial(train, name), form)
    told.close()
    return parts


def _optimizer(config: ConfigDict, examples: int) -> optax.GradientTransformation:
    """The config's, whose learning rate is a number in its state: a member's own."""
    unit = ConfigDict(config)
    unit.learning_rate = 1.0
    return optax.chain(
        build_optimizer(config, build_schedule(unit, examples)),
        optax.inject_hyperparams(optax.scale)(step_size=1.0),
    )


def _first(
    model: nn.Module, optimizer: Any, dataset: Dataset, rate: float, seed: int
) -> TrainState:
    state = create_state(model, optimizer, seed, dataset.image_shape)
    rate_in_state = optax.tree_utils.tree_set(
        state.opt_state, step_size=jnp.asarray(rate, jnp.float32)
    )
    return dataclasses.replace(state, opt_state=rate_in_state)


def _steps(
    model: nn.Module, dataset: Dataset, config: ConfigDict, optimizer: Any
) -> tuple[Callable[..., Any], Callable[[TrainState], np.ndarray]]:
    """The step `(states, index) -> (states, metrics)` and `states -> test error in percent`."""
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
        right = sum(part["correct"] for part in sums)
        return 100 * (1 - right / sum(part["count"] for part in sums))

    return lambda states, index: step(states, index, images, labels), evaluate


def _epoch(window: list[Any], test_error: np.ndarray) -> np.ndarray:
    """Training error, test error and loss of every member, `(3, members)`."""
    fetched = jax.device_get(window)
    accuracy, loss = (np.mean([m[key] for m in fetched], 0) for key in ("accuracy", "loss"))
    diverged = ~np.isfinite(loss)
    train_error = np.where(diverged, 100.0, 100 * (1 - accuracy))
    loss = np.where(diverged, math.log(1e4), loss)  # JSON has no infinity
    return np.stack([train_error, np.where(diverged, 100.0, test_error), loss])
