"""How examples come to the step: batch by batch from the host, or all of them on the devices."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from resflax.data import (
    Dataset,
    InMemorySplit,
    Split,
    batch_epochs,
    batch_indices,
    eval_batches,
    train_batches,
)
from resflax.distributed.engines import Engine
from resflax.errors import UserError, unknown
from resflax.train.metrics import Metrics
from resflax.train.state import TrainState
from resflax.train.step import TrainStep

StepFn = Callable[[TrainState], tuple[TrainState, Metrics]]
PLACEMENTS = ("auto", "host", "device")
# What a device is taken to have room for, besides the network.
MAX_DEVICE_DATASET_BYTES = 512 * 2**20
# Of example numbers that are sent to the devices at once.
INDEX_BUFFER_BYTES = 64 * 2**20


def keep_two_in_flight(results: list[Any]) -> None:
    """Waits for all but the last two: they keep the devices busy, more would pile up memory."""
    if len(results) > 2:
        jax.block_until_ready(results[-3])


def fits_on_device(placement: str, dataset: Dataset) -> bool:
    """Whether a dataset is to lie on the devices as a whole.

    Args:
      placement: "host", "device", or "auto": on the devices if it is in memory and small.
      dataset: whose splits are meant.

    Raises:
      UserError: if it shall, but is too large to be in memory at all; or on an unknown name.
    """
    if placement not in PLACEMENTS:
        raise unknown("data.placement", placement, PLACEMENTS)
    whole = isinstance(dataset.train, InMemorySplit)
    if placement == "device" and not whole:
        raise UserError(
            f"config.data.placement is 'device', but {dataset.name!r} is read as it is needed:"
            " expected 'host' or 'auto'"
        )
    if placement == "auto" and isinstance(dataset.train, InMemorySplit):
        return dataset.train.images.nbytes <= MAX_DEVICE_DATASET_BYTES
    return whole and placement == "device"


def host_feed(
    engine: Engine, step: TrainStep, split: Split, config: ConfigDict, start: int, stop: int
) -> StepFn:
    """Steps `start` to `stop`, each with a batch that is sent to the devices."""
    mine = engine.local_slice(config.batch_size)
    batches = train_iterator(split, config, start, stop, mine)
    if config.data.alternating_flip:
        batches = map(_with_epochs(config, len(split), mine), batches, range(start, stop))
    run = engine.compile_train(step)
    return lambda state: run(state, engine.shard_batch(next(batches)))


def _with_epochs(config: ConfigDict, examples: int, mine: slice) -> Callable[[Any, int], Any]:
    return lambda batch, step: (
        batch | {"epoch": batch_epochs(step, config.batch_size, examples)[mine]}
    )


def device_feed(
    engine: Engine,
    step: TrainStep,
    examples: InMemorySplit,
    config: ConfigDict,
    start: int,
    stop: int,
) -> StepFn:
    """Steps `start` to `stop` on examples that lie on the devices, as `host_feed` orders them.

    The order is sent ahead for as many steps as 64 MiB hold: within these, nothing crosses.
    """
    whole = {"image": examples.images, "label": examples.labels}
    run = engine.compile_train_on_device_data(gather_batch_in_step(step))
    size, count, mine = config.batch_size, len(examples), engine.local_slice(config.batch_size)
    many = max(1, INDEX_BUFFER_BYTES // (4 * size))
    placed: dict[str, Any] = {}
    at = start

    def advance(state: TrainState) -> tuple[TrainState, Metrics]:
        nonlocal at, placed
        if (at - start) % many == 0:
            steps = range(at, min(at + many, stop))
            order = {
                "index": np.stack(
                    [
                        batch_indices(config.seed, s, size, count)[mine].astype(np.int32)
                        for s in steps
                    ]
                )
            }
            if config.data.alternating_flip:
                order["epoch"] = np.stack([batch_epochs(s, size, count)[mine] for s in steps])
            fixed = placed.get("whole") or engine.replicate(whole)
            first = engine.replicate(np.int32(at))
            placed = {"whole": fixed, "first": first, "order": engine.shard_index(order)}
        at += 1
        return run(state, placed)

    return advance


def gather_batch_in_step(
    step: TrainStep,
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """A step `(state, data) -> (state, metrics)` that takes its batch out of the whole dataset.

    The data hold "whole", all images and labels; "order", the numbers of the examples of some
    steps as "index", `(steps, batch)`, and whatever else a batch has of that shape; and "first",
    the first of these steps.
    """

    def run(state: TrainState, data: Any) -> tuple[TrainState, Metrics]:
        row = state.step - data["first"]
        order = {
            key: lax.dynamic_index_in_dim(rows, row, keepdims=False)
            for key, rows in data["order"].items()
        }
        batch = {key: array[order["index"]] for key, array in data["whole"].items()}
        return step(state, batch | order)

    return run


def train_iterator(
    split: Split, config: ConfigDict, start: int, stop: int, mine: slice
) -> Iterator[Any]:
    """The rows `mine` of the batches of steps `start` to `stop`, on the host."""
    return train_batches(
        split,
        seed=config.seed,
        batch_size=config.batch_size,
        start=start,
        stop=stop,
        local_rows=mine,
        num_workers=config.data.num_workers,
    )


def eval_iterator(split: Split, config: ConfigDict, mine: slice) -> Iterator[Any]:
    """Every example once, in batches, of which it has the rows `mine`."""
    return eval_batches(
        split,
        batch_size=config.batch_size,
        local_rows=mine,
        num_workers=config.data.num_workers,
    )
