"""Batches of a split on the host, for training and for evaluation."""

from collections.abc import Iterator

import numpy as np

from resflax.data.in_memory import InMemorySplit
from resflax.data.loader import Batch, stream_batches
from resflax.data.order import EvalOrder, Order, TrainOrder
from resflax.data.streaming import StreamingSplit

# A split of a dataset: in memory, or read when it is needed.
Split = InMemorySplit | StreamingSplit


def train_batches(
    split: Split,
    *,
    seed: int,
    batch_size: int,
    start: int,
    stop: int,
    local_rows: slice = slice(None),
    num_workers: int = 0,
    repeats: int = 1,
    offset: int = 0,
) -> Iterator[Batch]:
    """Yields the batches of steps `start` to `stop - 1`, which depend on (seed, step) only.

    Each is a dict of "image" uint8 `(n, height, width, channels)`, "label" int32 `(n,)` and
    "index" int32 `(n,)`, the example indices; with `repeats` above 1 also "repeat" int32 `(n,)`,
    which copy of its example each row is.

    Args:
      split: the examples.
      seed: seed of the order, see `batch_indices`.
      batch_size: global batch size.
      start: first step.
      stop: end of the steps, exclusive.
      local_rows: the rows of each batch to yield: those of one process of several.
      num_workers: worker processes that read a `StreamingSplit`; 0 for threads. The batches do not
        depend on it.
      repeats: copies of each example in an epoch, see `batch_indices`.
      offset: see `batch_indices`.
    """
    order = TrainOrder(seed, batch_size, len(split), start, stop, local_rows, repeats, offset)
    keys = ("image", "label", "index", *(("repeat",) if repeats > 1 else ()))
    return _batches(split, order, keys, num_workers)


def eval_batches(
    split: Split,
    *,
    batch_size: int,
    local_rows: slice = slice(None),
    num_workers: int = 0,
    with_index: bool = False,
) -> Iterator[Batch]:
    """Yields every example once, in order, in batches of one size.

    Each is a dict of "image" and "label", as in `train_batches`, and "weight" float32 `(n,)`: 1 for
    an example that counts, 0 for the padding of the last batch and for an example that replaces
    a skipped one.

    Args:
      split: the examples.
      batch_size: global batch size.
      local_rows: the rows of each batch to yield: those of one process of several.
      num_workers: see `train_batches`.
      with_index: also yield "index", the example indices, as in `train_batches`.
    """
    order = EvalOrder(batch_size, len(split), local_rows)
    keys = ("image", "label", "weight", *(("index",) if with_index else ()))
    return _batches(split, order, keys, num_workers)


def _batches(
    split: Split, order: Order, keys: tuple[str, ...], num_workers: int
) -> Iterator[Batch]:
    if isinstance(split, StreamingSplit):
        return stream_batches(split, order, keys, num_workers=num_workers)
    return _in_memory_batches(split, order, keys)


def _in_memory_batches(
    split: InMemorySplit, order: Order, keys: tuple[str, ...]
) -> Iterator[Batch]:
    for position in range(len(order)):
        plan = order.batch(position)
        images, labels = split.get_batch(plan.index, plan.step)
        batch = {
            "image": images,
            "label": labels,
            "index": plan.index.astype(np.int32),
            "weight": plan.weight,
            "repeat": plan.repeat,
        }
        yield {key: batch[key] for key in keys}
