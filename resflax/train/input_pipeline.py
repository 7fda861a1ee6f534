"""Input pipeline: batches from the host, or a whole dataset on the devices."""

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
from resflax.distributed import Engine
from resflax.errors import UserError
from resflax.train.metrics import Metrics
from resflax.train.state import TrainState
from resflax.train.step import TrainStep

# Runs one training step on the next batch.
StepFn = Callable[[TrainState], tuple[TrainState, Metrics]]

PLACEMENTS = ("auto", "host", "device")
# Largest training split that "auto" puts on the devices.
MAX_DEVICE_DATASET_BYTES = 512 * 2**20
# Maximum size of the example indices that are sent to the devices at once.
INDEX_BUFFER_BYTES = 64 * 2**20


def limit_in_flight(results: list[Any]) -> None:
    """Waits for all results but the last two, which are enough to keep the devices busy."""
    if len(results) > 2:
        jax.block_until_ready(results[-3])


def fits_on_device(placement: str, dataset: Dataset) -> bool:
    """Returns whether a dataset is put on the devices as a whole.

    Args:
      placement: "host", "device", or "auto": on the devices if it is in memory and small.
      dataset: the dataset; its training split decides.

    Raises:
      UserError: on "device" for a dataset that is not in memory.
    """
    in_memory = isinstance(dataset.train, InMemorySplit)
    if placement == "device" and not in_memory:
        raise UserError(
            f"config.data.placement is 'device', but {dataset.name!r} is streamed from disk:"
            " expected 'host' or 'auto'"
        )
    if placement == "auto" and isinstance(dataset.train, InMemorySplit):
        return dataset.train.images.nbytes <= MAX_DEVICE_DATASET_BYTES
    return in_memory and placement == "device"


def train_iterator(
    split: Split, config: ConfigDict, start: int, stop: int, local_rows: slice
) -> Iterator[Any]:
    """Yields this process's rows of the batches of steps `start` to `stop` - 1, on the host."""
    return train_batches(
        split,
        seed=config.seed,
        batch_size=config.batch_size,
        start=start,
        stop=stop,
        local_rows=local_rows,
        num_workers=config.data.num_workers,
    )


def eval_iterator(split: Split, config: ConfigDict, local_rows: slice) -> Iterator[Any]:
    """Yields this process's rows of evaluation batches, which contain every example once."""
    return eval_batches(
        split,
        batch_size=config.batch_size,
        local_rows=local_rows,
        num_workers=config.data.num_workers,
    )


def make_host_step_fn(
    engine: Engine, step: TrainStep, split: Split, config: ConfigDict, start: int, stop: int
) -> StepFn:
    """Compiles a step that gets one batch at a time from the host, from step `start` on."""
    size, examples, rows = config.batch_size, len(split), engine.local_slice(config.batch_size)
    batches = train_iterator(split, config, start, stop, rows)

    def add_epoch(batch: Any, number: int) -> Any:
        return batch | {"epoch": batch_epochs(number, size, examples)[rows]}

    if config.data.alternating_flip:
        batches = map(add_epoch, batches, range(start, stop))
    run = engine.compile_train(step)
    return lambda state: run(state, engine.shard_batch(next(batches)))


def make_device_step_fn(
    engine: Engine,
    step: TrainStep,
    split: InMemorySplit,
    config: ConfigDict,
    start: int,
    stop: int,
) -> StepFn:
    """Compiles a step on a dataset that is on the devices, in the order of `make_host_step_fn`.

    The example indices are sent ahead for as many steps as fit into `INDEX_BUFFER_BYTES`; between
    these transfers a step transfers nothing.
    """
    run = engine.compile_train_on_device_data(gather_batch_in_step(step))
    size, examples, rows = config.batch_size, len(split), engine.local_slice(config.batch_size)
    steps_per_transfer = max(1, INDEX_BUFFER_BYTES // (4 * size))
    dataset = engine.replicate({"image": split.images, "label": split.labels})
    data: dict[str, Any] = {}
    current = start

    def transfer(steps: range) -> dict[str, Any]:
        indices = [batch_indices(config.seed, s, size, examples)[rows] for s in steps]
        order = {"index": np.stack(indices).astype(np.int32)}
        if config.data.alternating_flip:
            epochs = [batch_epochs(s, size, examples)[rows] for s in steps]
            order["epoch"] = np.stack(epochs)
        first = engine.replicate(np.int32(steps.start))
        return {"dataset": dataset, "first_step": first, "order": engine.shard_index(order)}

    def run_step(state: TrainState) -> tuple[TrainState, Metrics]:
        nonlocal current, data
        if (current - start) % steps_per_transfer == 0:
            data = transfer(range(current, min(current + steps_per_transfer, stop)))
        current += 1
        return run(state, data)

    return run_step


def gather_batch_in_step(
    step: TrainStep,
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """Makes a step `(state, data) -> (state, metrics)` that gathers its batch from a dataset.

    The data have "dataset", all images and labels; "order", with the example indices of several
    steps as "index", `(steps, batch)`, and other entries of a batch with that shape; and
    "first_step", the first of these steps.
    """

    def run(state: TrainState, data: Any) -> tuple[TrainState, Metrics]:
        row = state.step - data["first_step"]
        order = {
            key: lax.dynamic_index_in_dim(rows, row, keepdims=False)
            for key, rows in data["order"].items()
        }
        batch = {key: array[order["index"]] for key, array in data["dataset"].items()}
        return step(state, batch | order)

    return run
