"""The batch statistics of given weights over given batches, in place of running averages.

A running average is over batches that other weights saw, and it goes with the weights of one run,
not with an average of weights. "Precise" batch norm (Wu and Johnson 2021, arXiv:2105.07576, section
3 and the appendix on its estimators) takes the statistics of the whole population: with `E` over
batches of one size, of means `mu` and variances `var`,

    mean = E[mu],   variance = E[mu^2 + var] - E[mu]^2 = E[var] + Var[mu].

He et al. 2015 fixed the statistics of their ImageNet models this way. The mean of the batches'
variances alone, as the batch norm paper has it, leaves out `Var[mu]`.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

Array = jax.Array
Statistics = Any


def _forget(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Calls a module's method; if it has a momentum, as if that were 0.

    So that what it leaves is the batch's own: to undo 0.9 old + 0.1 new would lose digits.
    """
    if hasattr(context.module, "momentum"):
        # The module is the copy of this one `apply`, frozen against mistakes.
        object.__setattr__(context.module, "momentum", 0.0)
    return call(*args, **kwargs)


def batch_statistics(model: nn.Module, variables: Any, images: Array) -> Statistics:
    """Mean and variance that each norm of `model` finds in a batch.

    Args:
      model: called as `model(images, train=True)`; its norms move their "batch_stats" by a field
        `momentum`, as ours and `flax.linen.BatchNorm` do.
      variables: "params" and "batch_stats". Ours takes the variance around the means in these: near
        ones save digits.
      images: as the network takes them.

    Returns:
      A tree like `variables["batch_stats"]`, of its dtypes.
    """
    with nn.intercept_methods(_forget):
        _, updated = _whole(model).apply(variables, images, train=True, mutable=["batch_stats"])
    return updated["batch_stats"]


def _whole(model: Any) -> nn.Module:
    """The network with nothing dropped at random, as it is evaluated."""
    if getattr(model, "draws", False):
        return model.clone(spec=model.spec.override(drop_path=0.0, dropout=0.0))
    return model


_batch_statistics = partial(jax.jit, static_argnums=0)(batch_statistics)


def measured(
    measure: Callable[[Statistics, Any], Statistics], start: Statistics, batches: Iterable[Any]
) -> Iterator[Statistics]:
    """The statistics of each batch, the variances around the means of the one before."""
    found = None
    for batch in batches:
        found = measure(measure(start, batch) if found is None else found, batch)
        yield found


def population(measured: Iterable[Statistics]) -> Statistics:
    """Mean and variance of everything, from those of batches of one size.

    Args:
      measured: trees with arrays "mean" and "var" side by side, as Flax's batch norm keeps them.

    Returns:
      A tree like each of them, of NumPy arrays in float32, added up in float64.

    Raises:
      ValueError: if there are none.

    >>> parts = [{"mean": 0.0, "var": 1.0}, {"mean": 2.0, "var": 3.0}]
    >>> {key: float(value) for key, value in population(parts).items()}
    {'mean': 1.0, 'var': 3.0}
    """
    total: Any = None
    for count, part in enumerate(measured, start=1):
        wide = jax.tree.map(partial(np.asarray, dtype=np.float64), part)
        total = _merged(total, wide, count) if total is not None else wide
    if total is None:
        raise ValueError("no batches to take statistics of: expected one or more")
    return jax.tree.map(np.float32, total)


def _merged(total: Any, part: Any, count: int) -> Any:
    """The statistics of `count` batches from those of all but the last and of the last."""
    if "mean" not in part:
        return {key: _merged(total[key], part[key], count) for key in part}
    mean = total["mean"] + (part["mean"] - total["mean"]) / count
    between = (part["mean"] - total["mean"]) * (part["mean"] - mean)
    return {"mean": mean, "var": total["var"] + (part["var"] + between - total["var"]) / count}


def recalibrate(model: nn.Module, variables: Any, batches: Iterable[Array]) -> Any:
    """The same parameters with the batch statistics of the population that `batches` are.

    The statistics that were there have no part in it.

    Args:
      model: a linen module called as `model(images, train=True)`.
      variables: "params" and "batch_stats"; without the latter nothing is done.
      batches: images `(n, height, width, channels)` as the network takes them, each batch of one
        size n. The network normalises them as in training, by the batch.

    Returns:
      "params", as they are, and "batch_stats", float32.

    Raises:
      ValueError: if there are no batches.
    """
    if not variables.get("batch_stats"):
        return variables

    def measure(statistics: Statistics, images: Array) -> Statistics:
        return _batch_statistics(model, {**variables, "batch_stats": statistics}, images)

    start = jax.tree.map(np.zeros_like, variables["batch_stats"])
    return {**variables, "batch_stats": population(measured(measure, start, batches))}
