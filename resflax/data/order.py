"""Example order: which examples form each batch, as a function of (seed, step)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

# Number of orders, as of the members of an ensemble, whose last two permutations are kept.
MAX_CACHED_ORDERS = 64


@lru_cache(maxsize=MAX_CACHED_ORDERS)
def _permutations(seed: int, num_examples: int) -> Callable[[int], Int[np.ndarray, " examples"]]:
    """Returns `epoch -> permutation`, which keeps its last two results."""

    def permutation(epoch: int) -> Int[np.ndarray, " examples"]:
        return np.random.default_rng([seed, epoch]).permutation(num_examples)

    return lru_cache(maxsize=2)(permutation)


def number_of_steps(epochs: float, num_examples: int, batch_size: int) -> int:
    """Returns the number of batches that use every example `epochs` times, rounded up.

    >>> number_of_steps(3, 100, 8)
    38
    """
    return math.ceil(epochs * num_examples / batch_size)


def batch_indices(
    seed: int, step: int, batch_size: int, num_examples: int, repeats: int = 1, offset: int = 0
) -> Int[np.ndarray, " batch"]:
    """Returns the indices of the examples of batch `step`, int64 `(batch_size,)`.

    Batches are consecutive slices of an endless sequence that concatenates one permutation of the
    split per epoch. Every example is used exactly once per epoch and none is dropped; a batch may
    cross an epoch boundary.

    With `repeats` above 1, an epoch has the first examples of the permutation that many times, one
    copy after the other, up to the size of the split: repeated augmentation (Hoffer et al. 2020,
    arXiv:1901.09335) as in timm's `RepeatAugSampler`. A batch begins with the first copies,
    followed by the second ones, so that devices have different copies. An example is mixed with
    itself only where few examples fill a batch, or the end of an epoch cuts off copies.

    Batch `step` begins at the position `offset + step * batch_size`, see `Phase`.

    >>> np.concatenate([batch_indices(0, step, 2, 5) for step in range(5)])[:5].sum()
    np.int64(10)
    """
    epochs, offsets, _ = _positions(step, batch_size, num_examples, repeats, offset)
    permutation = _permutations(seed, num_examples)
    index = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        rows = epochs == epoch
        index[rows] = permutation(int(epoch))[offsets[rows]]
    return index


def batch_repeats(
    step: int, batch_size: int, num_examples: int, repeats: int, offset: int = 0
) -> Int[np.ndarray, " batch"]:
    """Returns which copy of its example each row of batch `step` is, from 0, int32 `(batch_size,)`.

    >>> batch_repeats(0, 6, 100, 3).tolist()
    [0, 0, 1, 1, 2, 2]
    """
    return _positions(step, batch_size, num_examples, repeats, offset)[2].astype(np.int32)


def _positions(
    step: int, batch_size: int, num_examples: int, repeats: int, offset: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns epoch, position in the permutation, and copy of each row of batch `step`."""
    positions = np.arange(offset + step * batch_size, offset + (step + 1) * batch_size)
    epochs, offsets = np.divmod(positions, num_examples)
    if repeats == 1:  # the data loader calls this for each example
        return epochs, offsets, np.zeros_like(offsets)
    offsets, copies = np.divmod(offsets, repeats)
    rows = np.argsort(copies, kind="stable")
    return epochs[rows], offsets[rows], copies[rows]


def batch_epochs(
    step: int, batch_size: int, num_examples: int, offset: int = 0
) -> Int[np.ndarray, " batch"]:
    """Returns the epoch of each example of batch `step`, counted from 0, int32 `(batch_size,)`.

    >>> batch_epochs(2, 2, 5).tolist()
    [0, 1]
    """
    positions = offset + step * batch_size + np.arange(batch_size)
    return (positions // num_examples).astype(np.int32)


@dataclass(frozen=True)
class BatchPlan:
    """The examples of one batch.

    Attributes:
      index: int64 `(rows,)`, example indices.
      weight: float32 `(rows,)`, 1 for an example that counts and 0 for padding.
      repeat: int32 `(rows,)`, which copy of its example each row is; 0 without repetition.
      step: the training step, which seeds random crops; 0 in evaluation.
    """

    index: Int[np.ndarray, " rows"]
    weight: Float[np.ndarray, " rows"]
    repeat: Int[np.ndarray, " rows"]
    step: int


@dataclass(frozen=True)
class TrainOrder:
    """The training batches of steps `start` to `stop - 1`, ordered by `batch_indices`.

    Attributes:
      seed: seed of the order.
      batch_size: global batch size.
      num_examples: size of the split.
      start: first step.
      stop: end of the steps, exclusive.
      local_rows: the rows of each batch that this process reads.
      repeats: copies of each example, see `batch_indices`.
      offset: see `batch_indices`.
    """

    seed: int
    batch_size: int
    num_examples: int
    start: int
    stop: int
    local_rows: slice
    repeats: int = 1
    offset: int = 0

    def __len__(self) -> int:
        return self.stop - self.start

    def batch(self, position: int) -> BatchPlan:
        """Returns the examples of batch `position`, that of step `start + position`."""
        step, rows = self.start + position, self.local_rows
        shape = self.batch_size, self.num_examples, self.repeats, self.offset
        index = batch_indices(self.seed, step, *shape)[rows]
        repeat = batch_repeats(step, *shape)[rows]
        return BatchPlan(index, np.ones(len(index), np.float32), repeat, step)


@dataclass(frozen=True)
class EvalOrder:
    """The evaluation batches: every example once, in order.

    The last batch is padded with example 0 at weight 0.

    Attributes:
      batch_size: global batch size.
      num_examples: size of the split.
      local_rows: the rows of each batch that this process reads.
    """

    batch_size: int
    num_examples: int
    local_rows: slice

    def __len__(self) -> int:
        return -(-self.num_examples // self.batch_size)

    def batch(self, position: int) -> BatchPlan:
        """Returns the examples of batch `position`."""
        first = position * self.batch_size
        index = np.arange(first, first + self.batch_size)[self.local_rows]
        valid = index < self.num_examples
        repeat = np.zeros(len(index), np.int32)
        return BatchPlan(np.where(valid, index, 0), valid.astype(np.float32), repeat, 0)


Order = TrainOrder | EvalOrder
