"""Which examples make up which batch: a function of (seed, step) and nothing else."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from resflax.data.in_memory import InMemorySplit

Batch = dict[str, np.ndarray]


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(size)


def batch_indices(seed: int, step: int, batch_size: int, size: int) -> np.ndarray:
    """The examples of batch `step`, int64 `(batch_size,)`.

    The batches cut one endless row into pieces: a permutation of the split for each epoch, one
    after the other. So every example is used exactly once an epoch and none is dropped; a batch may
    end one epoch and begin the next.

    >>> np.concatenate([batch_indices(0, step, 2, 5) for step in range(5)])[:5].sum()
    np.int64(10)
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, offsets = np.divmod(positions, size)
    return np.concatenate(
        [_permutation(seed, int(e), size)[offsets[epochs == e]] for e in np.unique(epochs)]
    )


def train_batches(
    examples: InMemorySplit,
    *,
    seed: int,
    batch_size: int,
    start: int,
    stop: int,
    mine: slice = slice(None),
) -> Iterator[Batch]:
    """The batches of steps `start` to `stop`: "image", "label", and "index", example numbers.

    Of each, the rows `mine` alone: what one process of several hands over.
    """
    for step in range(start, stop):
        index = batch_indices(seed, step, batch_size, len(examples))[mine]
        images, labels = examples.get_batch(index, step)
        yield {"image": images, "label": labels, "index": index.astype(np.int32)}


def eval_batches(
    examples: InMemorySplit, *, batch_size: int, mine: slice = slice(None)
) -> Iterator[Batch]:
    """Every example once, in order, in batches of one size: "image", "label" and "weight".

    The last batch is filled up with examples of weight 0; all others weigh 1. Of each, the rows
    `mine` alone.
    """
    for start in range(0, len(examples), batch_size):
        index = np.arange(start, start + batch_size)[mine]
        inside = index < len(examples)
        index = np.where(inside, index, 0)
        images, labels = examples.get_batch(index)
        yield {"image": images, "label": labels, "weight": inside.astype(np.float32)}
