"""Gradient accumulation: one update from the mean gradient of several micro-batches.

The step keeps the activations of one micro-batch at a time, so a batch can be `count` times as
large as what fits into the device's memory. Schedules, records and step numbers count updates.

Batch norm normalizes each micro-batch by its own statistics: a network with batch norm trains as
with batches of 1 / `count` of the size, and its running statistics are updated `count` times per
update. Without batch norm the update equals that of the whole batch, to rounding.

Micro-batch j has the examples j, j + count, j + 2 count, ... of the batch. A device has a
contiguous part of the batch whose size is a multiple of `count`, so it has its share of every
micro-batch, and the examples of a micro-batch do not depend on the device count. With contiguous
micro-batches they would, and so would the statistics of batch norm.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from resflax.errors import UserError, quantity

Tree = TypeVar("Tree")
# `(collections, batch) -> (gradients, collections, metrics)`.
Gradient = Callable[[Any, Any], tuple[Any, Any, Any]]


def check_micro_batches(batch_size: int, devices: int, count: int) -> None:
    """Raises `UserError` if the batch cannot be split into `count` equal parts on each device."""
    unit = devices * count
    if batch_size % unit:
        below, above = batch_size // unit * unit, -(-batch_size // unit) * unit
        valid = f"{below} or {above}" if below else f"{above}"
        raise UserError(
            f"batch_size {batch_size} is not a multiple of {quantity(devices, 'device')} times"
            f" grad_accum_steps {count}: use {valid}"
        )


def micro_batches(batch: Tree, count: int) -> Tree:
    """Splits leaves `(n, ...)` into `(count, n / count, ...)`, every `count`-th example together.

    Raises:
      ValueError: if `count` does not divide n.

    >>> micro_batches(jnp.arange(6), 2).tolist()
    [[0, 2, 4], [1, 3, 5]]
    """

    def split(leaf: Any) -> Any:
        if len(leaf) % count:
            raise ValueError(f"{len(leaf)} examples cannot be split into {count} micro-batches")
        return jnp.swapaxes(leaf.reshape(-1, count, *leaf.shape[1:]), 0, 1)

    return jax.tree.map(split, batch)


def accumulate(
    gradient: Gradient, params: Any, collections: Any, batch: Any, count: int
) -> tuple[Any, Any, Any]:
    """Computes `gradient(collections, batch)` from `count` micro-batches, one after the other.

    Args:
      gradient: returns gradients and metrics, both means over the examples, and the new
        collections.
      params: a tree with the structure, shapes and dtypes of the gradients.
      collections: batch statistics and other variables before the first micro-batch, which updates
        them for the next.
      batch: pytree of arrays with a leading axis of examples.
      count: number of micro-batches; 1 runs without a loop.

    Returns:
      Mean gradients in the parameters' dtype, the last collections, mean metrics.
    """
    if count == 1:
        return gradient(collections, batch)

    def body(carry: Any, part: Any) -> tuple[Any, Any]:
        collections, total = carry
        grads, collections, metrics = gradient(collections, part)
        return (collections, jax.tree.map(jnp.add, total, grads)), metrics

    start = collections, jax.tree.map(jnp.zeros_like, params)
    (collections, total), metrics = lax.scan(body, start, micro_batches(batch, count))
    grads = jax.tree.map(lambda leaf: leaf / count, total)
    return grads, collections, jax.tree.map(lambda values: jnp.mean(values, 0), metrics)
