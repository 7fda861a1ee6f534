"""Batches of a stream by worker processes, in the order that one process would give them.

Grain runs the workers. Its own iterators cannot be taken up with another number of workers; here
the row of examples is a function of (seed, step), so a run begins at any step with any number.
"""

import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from resflax.data.batches import Batch, batch_indices
from resflax.data.streaming import StreamingSplit


class _TrainOrder(NamedTuple):
    """Place `k` of the row of batches is example `mine[k % len(mine)]` of a step's batch."""

    seed: int
    batch_size: int
    examples: int
    start: int
    stop: int
    mine: range

    def places(self) -> int:
        return (self.stop - self.start) * len(self.mine)

    def at(self, place: int) -> tuple[int, int, float]:
        step, offset = divmod(place, len(self.mine))
        step += self.start
        index = batch_indices(self.seed, step, self.batch_size, self.examples)[self.mine[offset]]
        return int(index), step, 1.0


class _EvalOrder(NamedTuple):
    """Every example once, in order; the last batch is filled up with the first, of weight 0."""

    batch_size: int
    examples: int
    mine: range

    def places(self) -> int:
        return -(-self.examples // self.batch_size) * len(self.mine)

    def at(self, place: int) -> tuple[int, int, float]:
        batch, offset = divmod(place, len(self.mine))
        index = batch * self.batch_size + self.mine[offset]
        return (index, 0, 1.0) if index < self.examples else (0, 0, 0.0)


class _OrderedSource:
    """The examples of all batches in a row, as Grain wants its source."""

    def __init__(self, stream: StreamingSplit, places: _TrainOrder | _EvalOrder) -> None:
        self.stream, self.places = stream, places

    def __len__(self) -> int:
        return self.places.places()

    def __getitem__(self, place: int) -> dict[str, Any]:
        index, step, weight = self.places.at(int(place))
        image, label, passed = self.stream.example(index, step)
        if passed:
            weight = 0.0  # another example stands in its place, which counts in its own
        return {
            "image": image,
            "label": np.int32(label),
            "index": np.int32(index),
            "weight": np.float32(weight),
            "passed": passed,
        }


def stream_train_batches(
    stream: StreamingSplit,
    *,
    seed: int,
    batch_size: int,
    start: int,
    stop: int,
    workers: int,
    mine: slice = slice(None),
) -> Iterator[Batch]:
    """The batches of steps `start` to `stop`, whatever the number of workers.

    Args:
      stream: what to read.
      seed: of the order.
      batch_size: examples in a batch.
      start: first step.
      stop: the step after the last.
      workers: processes that read and decode, which end when this one does; 0 for threads.
      mine: the rows of each batch that are wanted: those of one process of several.
    """
    rows = range(batch_size)[mine]
    places = _TrainOrder(seed, batch_size, len(stream), start, stop, rows)
    return _batches(stream, places, workers, ("image", "label", "index"))


def stream_eval_batches(
    stream: StreamingSplit, *, batch_size: int, workers: int, mine: slice = slice(None)
) -> Iterator[Batch]:
    """Every example once, in order: "image", "label" and "weight", 0 for what does not count."""
    places = _EvalOrder(batch_size, len(stream), range(batch_size)[mine])
    return _batches(stream, places, workers, ("image", "label", "weight"))


def _batches(
    stream: StreamingSplit, places: _TrainOrder | _EvalOrder, workers: int, keys: tuple[str, ...]
) -> Iterator[Batch]:
    import grain  # not before it is needed: it takes half a second

    if not flags.FLAGS.is_parsed():  # Grain's workers read flags that nobody has set
        flags.FLAGS.mark_as_parsed()
    rows = grain.MapDataset.source(_OrderedSource(stream, places)).batch(
        len(places.mine), batch_fn=_batched
    )
    threads = 1 if workers else 2
    reading = rows.to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    )
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    watched = partial(_end_with_parent, os.getpid())
    iterator: Any = iter(reading.mp_prefetch(options, worker_init_fn=watched))
    try:
        for batch in iterator:
            stream.skipped.update(batch["passed"])
            # A copy: the arrays of a worker lie in memory that it uses again.
            yield {key: np.array(batch[key]) for key in keys}
    finally:
        iterator.close()


def _batched(examples: Any) -> dict[str, Any]:
    passed: dict[int, str] = {}
    for example in examples:
        passed |= example["passed"]
    keys = [key for key in examples[0] if key != "passed"]
    return {key: np.stack([e[key] for e in examples]) for key in keys} | {"passed": passed}


def _end_with_parent(parent: int, worker: int, workers: int) -> None:
    """A worker whose parent was killed would wait for it for ever; it may be dead already."""
    del worker, workers

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
