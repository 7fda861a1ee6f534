"""What a run evaluates and leaves behind: its weights with batch statistics of their own."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from resflax.data import Split, StreamingSplit
from resflax.distributed.engines import Engine
from resflax.errors import UserError
from resflax.train.input_pipeline import train_iterator
from resflax.train.recalibrate import Statistics, batch_statistics, measured, population
from resflax.train.state import TrainState

Array = jax.Array
StatisticsStep = Callable[[TrainState, dict[str, Array]], Statistics]


def check_precise_bn(config: ConfigDict, state: TrainState) -> None:
    """Raises `UserError` if averaged weights would be evaluated with the statistics of others."""
    if config.ema_decay and state.batch_stats and not config.precise_bn_batches:
        raise UserError(
            f"config.ema_decay is {config.ema_decay}: averaged weights need batch statistics of"
            " their own, from --config.precise_bn_batches=16 or more"
        )


def make_statistics_step(
    model: nn.Module, *, normalize: Callable[[Array], Array], axis_name: str | None = None
) -> StatisticsStep:
    """A pure `(state, batch) -> batch statistics`, of the weights that evaluation takes.

    Args:
      model: see `batch_statistics`.
      normalize: from stored images, the batch's "image", to the network's input.
      axis_name: the mapped axis that the batch is split over, if there is one.
    """
    model = model.clone(axis_name=axis_name) if axis_name else model

    def step(state: TrainState, batch: dict[str, Array]) -> Statistics:
        return batch_statistics(model, state.eval_variables, normalize(batch["image"]))

    return step


def plain_batches(split: Split, config: ConfigDict, mine: slice) -> Iterator[Any]:
    """The first `config.precise_bn_batches` batches of a run, in its order, not augmented.

    As evaluation sees images: they are to be normalised as these are.
    """
    centred = dataclasses.replace(split, seed=None) if isinstance(split, StreamingSplit) else split
    return train_iterator(centred, config, 0, config.precise_bn_batches, mine)


def settled(
    engine: Engine, step: StatisticsStep, state: TrainState, batches: Iterable[Any]
) -> TrainState:
    """`recalibrate` on an engine's devices, for the weights that evaluation takes.

    Args:
      engine: that holds the state.
      step: what `make_statistics_step` made, compiled by the engine.
      state: left as it is: training goes on with its running averages.
      batches: of one size.

    Returns:
      The state with other batch statistics, on the same devices; itself if it has none.
    """
    if not state.batch_stats:
        return state

    def measure(statistics: Statistics, batch: Any) -> Statistics:
        return step(dataclasses.replace(state, batch_stats=statistics), engine.shard_batch(batch))

    start = engine.replicate(jax.tree.map(np.zeros_like, engine.to_host(state.batch_stats)))
    found = population(engine.to_host(part) for part in measured(measure, start, batches))
    return dataclasses.replace(state, batch_stats=engine.replicate(found))
