"""Data loader: batches of a streaming split, read by worker processes in a fixed order.

Grain runs the workers. Its own iterators cannot resume with another number of workers. Here the
order is a function of (seed, step), so a run can resume at any step with any number of workers.
"""

import math
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from absl import flags

from resflax.data.order import Order
from resflax.data.streaming import StreamingSplit
from resflax.data.workers import (
    BATCHES_PER_WORKER,
    check_shared_memory,
    free_shared_memory,
    isolate_workers,
    set_up_worker,
    worker_errors,
)

Batch = dict[str, np.ndarray]
WORKERS_PER_CPU = 4


class _OrderedSource:
    """Grain data source: the examples of all batches, one after the other."""

    def __init__(self, split: StreamingSplit, order: Order) -> None:
        self.split, self.order = split, order
        self.rows = len(range(order.batch_size)[order.local_rows])

    def __len__(self) -> int:
        return len(self.order) * self.rows

    def __getitem__(self, position: int) -> dict[str, Any]:
        batch, row = divmod(int(position), self.rows)
        plan = self.order.batch(batch)
        index, weight = int(plan.index[row]), plan.weight[row]
        repeat = plan.repeat[row]
        image, label, skipped = self.split.example(index, plan.step, int(repeat))
        if skipped:
            weight = 0.0  # the image is a replacement, which counts at its own index
        return {
            "image": image,
            "label": np.int32(label),
            "index": np.int32(index),
            "weight": np.float32(weight),
            "repeat": np.int32(repeat),
            "skipped": skipped,
        }


def stream_batches(
    split: StreamingSplit, order: Order, keys: tuple[str, ...], *, num_workers: int
) -> Iterator[Batch]:
    """Yields the batches of `order`, the same for any number of workers.

    Args:
      split: the examples; its `skipped` is updated as batches arrive.
      order: which examples form each batch.
      keys: the entries to yield, of "image", "label", "index", "weight" and "repeat".
      num_workers: processes that read and decode; 0 for threads. At most 4 per CPU core, and one
        per batch, are started, since each takes seconds of CPU time to start. They exit with this
        process.

    Raises:
      UserError: if shared memory is too small for the workers' batches.
      WorkerLostError: if a worker was killed.
    """
    import grain  # takes half a second

    if not flags.FLAGS.is_parsed():  # Grain's workers read absl flags, parsed or not
        flags.FLAGS.mark_as_parsed()
    source = _OrderedSource(split, order)
    dataset = grain.MapDataset.source(source).batch(source.rows, batch_fn=_stack)
    num_workers = min(num_workers, WORKERS_PER_CPU * (os.cpu_count() or 1), len(order))
    threads = 1 if num_workers else 2
    read_options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    iter_dataset = dataset.to_iter_dataset(read_options)
    check_shared_memory(num_workers, source.rows * math.prod(split.image_shape))
    isolate_workers()
    options = grain.MultiprocessingOptions(
        num_workers=num_workers, per_worker_buffer_size=BATCHES_PER_WORKER
    )
    init = partial(set_up_worker, os.getpid())
    with worker_errors():
        iterator: Any = iter(iter_dataset.mp_prefetch(options, worker_init_fn=init))
    try:
        while True:
            with worker_errors():
                batch = next(iterator, None)
            if batch is None:
                return
            split.add_skipped(batch["skipped"])
            copied = {key: np.array(batch[key]) for key in keys}
            free_shared_memory(batch.values())
            yield copied
    finally:
        iterator.close()


def _stack(examples: Any) -> dict[str, Any]:
    skipped: dict[int, str] = {}
    for example in examples:
        skipped |= example["skipped"]
    keys = [key for key in examples[0] if key != "skipped"]
    batch = {key: np.stack([example[key] for example in examples]) for key in keys}
    return batch | {"skipped": skipped}
