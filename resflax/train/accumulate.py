"""One update from several micro-batches: the mean of their gradients, by a loop inside the step.

The step holds the activations of one micro-batch at a time, so a batch may be `count` times as
large as what a device could take at once. Schedules, records and the step's number count updates.

Batch norm normalises each micro-batch by its own statistics: a network that has it trains as with
batches of a `count`-th, and its running statistics move `count` times an update, each time by one
of these. Without it an update is that of the whole batch, to rounding.

Micro-batch j holds the examples j, j + count, j + 2 count, ... of the batch. A device holds a
consecutive part of the batch, whose size is a multiple of `count`: so it holds its share of every
micro-batch, and which examples meet in one does not depend on the device count. Cut into
consecutive pieces they would, and with them the statistics of batch norm.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from resflax.errors import UserError

Tree = TypeVar("Tree")
# `(batch_stats, batch) -> (gradients, batch_stats, metrics)`.
Gradient = Callable[[Any, Any], tuple[Any, Any, Any]]


def check_micro_batches(batch_size: int, devices: int, count: int) -> None:
    """Raises `UserError` if the devices cannot cut a batch of that size into `count` alike."""
    unit = devices * count
    if batch_size % unit:
        below, above = batch_size // unit * unit, -(-batch_size // unit) * unit
        fits = f"{below} or {above}" if below else f"{above}"
        raise UserError(
            f"batch_size {batch_size} does not divide by {devices} devices times grad_accum_steps"
            f" {count}: use {fits}"
        )


def micro_batches(batch: Tree, count: int) -> Tree:
    """Leaves `(n, ...)` as `(count, n / count, ...)`, every `count`-th example in one.

    Raises:
      ValueError: if `count` does not divide n.

    >>> micro_batches(jnp.arange(6), 2).tolist()
    [[0, 2, 4], [1, 3, 5]]
    """

    def cut(leaf: Any) -> Any:
        if len(leaf) % count:
            raise ValueError(f"{len(leaf)} examples cannot be cut into {count} micro-batches")
        return jnp.swapaxes(leaf.reshape(-1, count, *leaf.shape[1:]), 0, 1)

    return jax.tree.map(cut, batch)


def accumulate(
    gradient: Gradient, params: Any, batch_stats: Any, batch: Any, count: int
) -> tuple[Any, Any, Any]:
    """What `gradient(batch_stats, batch)` gives, from `count` micro-batches one after the other.

    Args:
      gradient: gives gradients and metrics that are means over what it is given, and the batch
        statistics after it.
      params: of the gradients' structure, shapes and dtypes.
      batch_stats: before the first micro-batch; each hands its own to the next.
      batch: a tree of arrays with a leading axis of examples.
      count: 1 for the whole batch at once, without a loop.

    Returns:
      Mean gradients, in the parameters' dtype; the last batch statistics; mean metrics.
    """
    if count == 1:
        return gradient(batch_stats, batch)

    def body(carry: Any, part: Any) -> tuple[Any, Any]:
        batch_stats, total = carry
        grads, batch_stats, metrics = gradient(batch_stats, part)
        return (batch_stats, jax.tree.map(jnp.add, total, grads)), metrics

    start = batch_stats, jax.tree.map(jnp.zeros_like, params)
    (batch_stats, total), metrics = lax.scan(body, start, micro_batches(batch, count))
    grads = jax.tree.map(lambda leaf: leaf / count, total)
    return grads, batch_stats, jax.tree.map(lambda values: jnp.mean(values, 0), metrics)
