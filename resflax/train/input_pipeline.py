"""Input pipeline: batches from the host, or a whole dataset on the devices."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from resflax.data import (
    Dataset,
    InMemorySplit,
    Split,
    StreamingSplit,
    batch_epochs,
    batch_indices,
    batch_repeats,
    eval_batches,
    train_batches,
)
from resflax.data.phases import Phase, Phases, one_phase
from resflax.distributed import Engine, EnsembleEngine
from resflax.distributed.engines import Step
from resflax.errors import UserError
from resflax.train.data_wait import DataWait
from resflax.train.device_steps import flat_dataset, gather_batch_in_step, repeat_step
from resflax.train.ensemble import is_ensemble, seeds_by_use
from resflax.train.image_sizes import resize_in_step
from resflax.train.metrics import Metrics
from resflax.train.state import TrainState
from resflax.train.step import TrainStep

# Runs one training step on the next batch; with `config.steps_per_call`, as many as its second
# argument says, whose metrics have a leading axis of steps.
StepFn = Callable[..., tuple[TrainState, Metrics]]

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


class BatchSeeds(NamedTuple):
    """Seeds of the batches of one network.

    Attributes:
      order: seed of the order of examples.
      crop: seed of the random crops of a `StreamingSplit`; None if it has none.
    """

    order: int
    crop: int | None


def batch_seeds(split: Split, config: ConfigDict) -> tuple[BatchSeeds, ...]:
    """Returns the seeds of each member's batches; only one if all members have the same batches."""
    crop = split.seed if isinstance(split, StreamingSplit) else None
    if not is_ensemble(config):
        return (BatchSeeds(config.seed, crop),)
    seeds = seeds_by_use(config)
    crops = [None] * config.ensemble.size if crop is None else seeds.augment
    members = tuple(map(BatchSeeds, seeds.order, crops))
    return members[:1] if len(set(members)) == 1 else members


def _host_iterator(
    split: Split, config: ConfigDict, phase: Phase, rows: slice, seeds: BatchSeeds, num_workers: int
) -> Iterator[Any]:
    """Yields this process's rows of the batches of a phase, on the host."""
    if isinstance(split, StreamingSplit):
        size = phase.image_size or split.size
        split = dataclasses.replace(split, seed=seeds.crop, size=size)
    batches = train_batches(
        split,
        seed=seeds.order,
        batch_size=phase.batch_size,
        start=phase.start,
        stop=phase.stop,
        local_rows=rows,
        num_workers=num_workers,
        repeats=config.data.repeats,
        offset=phase.offset,
    )
    shape = phase.batch_size, len(split), phase.offset
    for step, batch in zip(range(phase.start, phase.stop), batches, strict=True):
        epoch = {"epoch": batch_epochs(step, *shape)[rows]}
        yield batch | epoch if config.data.alternating_flip else batch


def further_keys(config: ConfigDict) -> tuple[str, ...]:
    """Returns the entries of a training batch besides image, label and index: int32, one a row."""
    flips, repeats = config.data.alternating_flip, config.data.repeats > 1
    return (*["epoch"] * flips, *["repeat"] * repeats)


def train_iterator(
    engine: Engine,
    split: Split,
    config: ConfigDict,
    start: int,
    stop: int,
    phases: Phases | None = None,
) -> Iterator[Any]:
    """Yields the batches of steps `start` to `stop` - 1 on the engine's devices.

    Members with separate batches have one iterator each and share the worker processes; each
    has at least one, if there are any. Images in memory have their own size in all `phases`, by
    default one.
    """
    phases = phases or one_phase(config.batch_size)
    seeds = batch_seeds(split, config)
    num_workers = -(-config.data.num_workers // len(seeds))

    def host_iterator(seeds: BatchSeeds) -> Iterator[Any]:
        for phase in phases.between(start, stop):
            rows = engine.local_slice(phase.batch_size)
            yield from _host_iterator(split, config, phase, rows, seeds, num_workers)

    if len(seeds) == 1:
        yield from map(engine.shard_batch, host_iterator(seeds[0]))
        return
    assert isinstance(engine, EnsembleEngine)
    members = [host_iterator(seeds[k]) for k in engine.local_members]
    for batches in zip(*members, strict=True):
        yield engine.shard_member_batch(jax.tree.map(lambda *arrays: np.stack(arrays), *batches))


def eval_iterator(split: Split, config: ConfigDict, local_rows: slice) -> Iterator[Any]:
    """Yields this process's rows of evaluation batches, which contain every example once."""
    return eval_batches(
        split,
        batch_size=config.batch_size,
        local_rows=local_rows,
        num_workers=config.data.num_workers,
    )


def make_host_step_fn(
    engine: Engine,
    step: TrainStep,
    split: Split,
    config: ConfigDict,
    start: int,
    stop: int,
    wait: DataWait | None = None,
    phases: Phases | None = None,
) -> StepFn:
    """Compiles a step that gets one batch at a time from the host, from step `start` on.

    `wait` measures how long the devices wait for the batches. The step is compiled once for each
    size of images and batches of the `phases`, by default one, when it is first used.
    """
    phases = phases or one_phase(config.batch_size)
    batches = train_iterator(engine, split, config, start, stop, phases)
    numbers, wait = itertools.count(start), wait or DataWait()
    compiled = cache(lambda phase: engine.compile_train(resize_in_step(step, split, phase)))

    def run_step(state: TrainState, count: int = 1) -> tuple[TrainState, Metrics]:
        assert count == 1, "batches from the host come one at a time"
        run = compiled(phases.of_step(next(numbers)))
        state, metrics = run(state, wait.next(batches))
        wait.dispatched(metrics)
        return state, metrics

    return run_step


def make_device_step_fn(
    engine: Engine,
    step: TrainStep,
    split: InMemorySplit,
    config: ConfigDict,
    start: int,
    stop: int,
    phases: Phases | None = None,
) -> StepFn:
    """Compiles a step on a dataset that is on the devices, in the order of `make_host_step_fn`.

    The example indices are sent ahead for as many steps as fit into `INDEX_BUFFER_BYTES`; between
    these transfers a step transfers nothing. A call takes steps of one of the `phases`.
    """
    # At least 2 if several are asked for, whose metrics have another axis.
    steps_per_call = max(min(config.steps_per_call, stop - start), min(config.steps_per_call, 2))
    phases = phases or one_phase(config.batch_size)
    compiled = cache(partial(compile_device_step, engine, step, split, steps_per_call))
    seeds = batch_seeds(split, config)
    ahead = max(steps_per_call, steps_per_transfer(config.batch_size, len(seeds)))
    dataset = engine.replicate(flat_dataset(split.images, split.labels))
    counts = cache(lambda count: engine.replicate(np.int32(count)))
    data: dict[str, Any] = {}
    current = end = start

    def transfer(phase: Phase) -> dict[str, Any]:
        first = engine.replicate(np.int32(phase.start))
        order = _shard_order(engine, seeds, config, phase, len(split))
        return {"dataset": dataset, "first_step": first, "order": order}

    def run_steps(state: TrainState, count: int = 1) -> tuple[TrainState, Metrics]:
        nonlocal current, end, data
        assert count <= steps_per_call
        if current + count > end:
            part = next(phases.between(current, min(current + ahead, stop)))
            end, data = part.stop, transfer(part)
        run = compiled(phases.of_step(current))
        current += count
        return run(state, data | {"count": counts(count)})

    return run_steps


def compile_device_step(
    engine: Engine, step: TrainStep, split: InMemorySplit, steps_per_call: int, phase: Phase
) -> Step:
    """Compiles a step that gathers its batches from a split on the devices, for a phase.

    It takes several steps, see `repeat_step`, by which one step per call has the same bits. On a
    GPU, where the host waits for each turn of a loop, one step per call is compiled without it.
    """
    run = gather_batch_in_step(resize_in_step(step, split, phase), split.image_shape)
    if steps_per_call > 1 or engine.devices[0].platform != "gpu":
        run = repeat_step(run, steps_per_call)
    return engine.compile_train_on_device_data(run)


def steps_per_transfer(batch_size: int, orders: int) -> int:
    """Returns for how many steps the example indices of some orders are sent ahead."""
    return max(1, INDEX_BUFFER_BYTES // (4 * batch_size * orders))


def index_rows(steps: int) -> int:
    """Returns for how many steps example indices are sent where `steps` need them: at least two.

    XLA takes a batch that can only be the first one out of the loop, and compiles a step to other
    instructions, with other last bits.
    """
    return max(2, steps)


def _shard_order(
    engine: Engine,
    seeds: Sequence[BatchSeeds],
    config: ConfigDict,
    phase: Phase,
    examples: int,
) -> dict[str, Any]:
    """Puts the example indices of the batches of a phase on the devices, and epochs if needed."""
    rows = engine.local_slice(phase.batch_size)
    steps = range(phase.start, phase.start + index_rows(phase.stop - phase.start))
    shape, repeats = (phase.batch_size, examples), config.data.repeats

    def indices(seed: int) -> Int[np.ndarray, "steps rows"]:
        batches = [batch_indices(seed, s, *shape, repeats, phase.offset)[rows] for s in steps]
        return np.stack(batches).astype(np.int32)

    if len(seeds) == 1:
        order = engine.shard_index({"index": indices(seeds[0].order)})
    else:
        assert isinstance(engine, EnsembleEngine)
        members = [indices(seeds[k].order) for k in engine.local_members]
        order = engine.shard_member_index({"index": np.stack(members, 1)})
    if config.data.alternating_flip:  # the same for all members
        epochs = [batch_epochs(step, *shape, phase.offset)[rows] for step in steps]
        order |= engine.shard_index({"epoch": np.stack(epochs)})
    if repeats > 1:
        copies = [batch_repeats(s, *shape, repeats, phase.offset)[rows] for s in steps]
        order |= engine.shard_index({"repeat": np.stack(copies)})
    return order
