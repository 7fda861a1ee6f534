"""Precise batch normalization: batch statistics computed for given weights.

The running averages of training mix statistics that were computed with earlier weights, and they do
not fit averaged weights (EMA). Precise BN (Wu and Johnson 2021, arXiv:2105.07576, section 3 and the
appendix on estimators) computes the statistics of the whole population instead: with `E` the mean
over batches of equal size, whose means are `mu` and variances `var`,

    mean = E[mu],   variance = E[mu^2 + var] - E[mu]^2 = E[var] + Var[mu].

He et al. 2015 computed the statistics of their ImageNet models this way. The mean of the batches'
variances alone, as in the batch norm paper, omits `Var[mu]`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float

from resflax.distributed.engines import Engine
from resflax.errors import UserError
from resflax.kernels import backend
from resflax.nn import ResNet
from resflax.nn.batch_norm import batch_norm_mode
from resflax.train.freeze import batch_norms
from resflax.train.metrics import check_keys
from resflax.train.module_checks import check_module, refuse_local_statistics, with_axis_name
from resflax.train.state import TrainState

BatchStats = Any
StatsStep = Callable[[TrainState, dict[str, Array]], BatchStats]


class _ZeroMomentum:
    """Calls modules' methods with momentum 0, so that the results are the statistics of the batch.

    Solving 0.9 old + 0.1 new for the new ones instead would lose precision.

    Attributes:
      paths: of the modules that have a momentum.
    """

    def __init__(self) -> None:
        self.paths: set[str] = set()

    def __call__(self, method: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if hasattr(context.module, "momentum"):
            # The module is the copy that this `apply` made; linen freezes it against mistakes.
            object.__setattr__(context.module, "momentum", 0.0)
            self.paths.add("/".join(context.module.path))
        return method(*args, **kwargs)


def _without_dropout(model: Any) -> nn.Module:
    """Returns the network without stochastic depth and dropout, as it is evaluated."""
    if getattr(model, "needs_rng", False):
        return model.clone(spec=model.spec.without_rng())
    return model


def compute_batch_stats(
    model: nn.Module, variables: Any, images: Float[Array, "n height width channels"]
) -> BatchStats:
    """Returns the mean and variance that each norm of `model` computes on one batch.

    Args:
      model: called as `model(images, train=True)`; its norms update "batch_stats" with a field
        `momentum`, as `resflax.nn.batch_norm.BatchNorm` and `flax.linen.BatchNorm` do.
      variables: "params" and "batch_stats". The former norm computes the variance around these
        means: the closer they are to the batch's means, the more accurate it is.
      images: input of the network, normalized.

    Returns:
      A tree like `variables["batch_stats"]`.

    Raises:
      UserError: if there are batch statistics of a module without momentum, or others than a mean
        and a variance.
    """
    mutable = [name for name in variables if name != "params"]
    with nn.intercept_methods(zero_momentum := _ZeroMomentum()):
        _, updated = _without_dropout(model).apply(variables, images, train=True, mutable=mutable)
    stats = updated.get("batch_stats", {})
    _check_statistics(stats, zero_momentum.paths)
    return stats


def _check_statistics(stats: BatchStats, with_momentum: set[str]) -> None:
    leaves = {"/".join(path) for path in flatten_dict(stats)}
    for norm in batch_norms(stats):
        own = {leaf for leaf in leaves if leaf.rpartition("/")[0] == norm}
        if norm not in with_momentum or own != {f"{norm}/mean", f"{norm}/var"}:
            raise UserError(
                f"precise batch norm cannot compute the batch statistics {', '.join(sorted(own))}:"
                " expected a module with a field momentum and the arrays mean and var, such as"
                " flax.linen.BatchNorm; or leave config.precise_bn_batches out"
            )


def per_batch_stats(
    compute: Callable[[BatchStats, Any], BatchStats], start: BatchStats, batches: Iterable[Any]
) -> Iterator[BatchStats]:
    """Yields the statistics of each batch, its variances around the means of the previous one.

    Args:
      compute: `(stats, batch) -> stats`; variances are computed around the means in its first
        argument.
      start: statistics before the first batch, for which `compute` runs twice.
      batches: batches of equal size.
    """
    stats = None
    for batch in batches:
        stats = compute(compute(start, batch) if stats is None else stats, batch)
        yield stats


def population_stats(per_batch: Iterable[BatchStats]) -> BatchStats:
    """Combines the statistics of batches of equal size into those of all their examples.

    Args:
      per_batch: trees with arrays "mean" and "var", as Flax's batch norm has them.

    Returns:
      A tree like each of them, of float32 NumPy arrays, accumulated in float64.

    Raises:
      ValueError: if there are no batches.

    >>> parts = [{"mean": 0.0, "var": 1.0}, {"mean": 2.0, "var": 3.0}]
    >>> {key: float(value) for key, value in population_stats(parts).items()}
    {'mean': 1.0, 'var': 3.0}
    """
    total: Any = None
    for count, stats in enumerate(per_batch, start=1):
        wide = jax.tree.map(partial(np.asarray, dtype=np.float64), stats)
        total = _merge(total, wide, count) if total is not None else wide
    if total is None:
        raise ValueError("no batches to compute statistics of: expected one or more")
    return jax.tree.map(np.float32, total)


def _merge(total: Any, batch: Any, count: int) -> Any:
    """Adds the statistics of batch number `count` to those of the batches before it."""
    if "mean" not in batch:
        return {key: _merge(total[key], batch[key], count) for key in batch}
    mean = total["mean"] + (batch["mean"] - total["mean"]) / count
    between = (batch["mean"] - total["mean"]) * (batch["mean"] - mean)
    return {"mean": mean, "var": total["var"] + (batch["var"] + between - total["var"]) / count}


def recompute_batch_stats(model: nn.Module, variables: Any, batches: Iterable[Array]) -> Any:
    """Replaces the batch statistics by those of the population that `batches` sample.

    Args:
      model: a linen module called as `model(images, train=True)`.
      variables: "params" and "batch_stats". The old statistics of batch norms that are not frozen
        do not affect the result; if there are none, the variables are returned unchanged.
      batches: images `(n, height, width, channels)`, input of the network, all batches of one size
        n, which the network normalizes by as in training.

    Returns:
      The same "params", and new "batch_stats" in float32.

    Raises:
      ValueError: if there are no batches.
    """
    updated = _updated_norms(model, variables.get("batch_stats", {}))
    if not updated:
        return variables

    if isinstance(model, ResNet):
        parts = model.spec.parts, backend.default_backend
        on_batch: Any = partial(_resnet_batch_stats, model, parts)
    else:
        # Modules of the user's own may depend on anything, so that equal ones share no program.
        on_batch = jax.jit(partial(compute_batch_stats, model))

    def compute(stats: BatchStats, images: Array) -> BatchStats:
        return on_batch({**variables, "batch_stats": stats}, images)

    start = _start(variables["batch_stats"], updated)
    stats = population_stats(per_batch_stats(compute, start, batches))
    return {**variables, "batch_stats": stats}


# Compiled once per network; the names in a spec may stand for other parts than when it was traced.
@partial(jax.jit, static_argnums=(0, 1))
def _resnet_batch_stats(model: ResNet, parts: Any, variables: Any, images: Array) -> BatchStats:
    del parts  # of the key only
    return compute_batch_stats(model, variables, images)


def _updated_norms(model: nn.Module, batch_stats: BatchStats) -> set[str]:
    """Returns the paths of the batch norms that are not frozen."""
    return set(filter(batch_norm_mode(model).updates, batch_norms(batch_stats)))


def _start(batch_stats: BatchStats, updated: set[str]) -> BatchStats:
    """Returns zeros for the batch norms that are updated, and the statistics of the others."""

    def start(path: Any, leaf: Any) -> Any:
        norm = "/".join(part.key for part in path[:-1])
        return np.zeros_like(leaf) if norm in updated else np.asarray(leaf)

    return jax.tree_util.tree_map_with_path(start, batch_stats)


def make_stats_step(
    model: nn.Module, *, normalize: Callable[[Array], Array], axis_name: str | None = None
) -> StatsStep:
    """Makes a pure `(state, batch) -> batch statistics`, for the weights that are evaluated.

    Args:
      model: see `compute_batch_stats`.
      normalize: maps stored images, the batch's "image", to the network's input.
      axis_name: the mapped axis over which the batch is split, if any.

    Raises:
      UserError: if the model cannot be called as described, or lacks the field `axis_name`; from
        the step when traced, if the batch has no images.
    """
    check_module(model)
    model = with_axis_name(model, axis_name)

    def step(state: TrainState, batch: dict[str, Array]) -> BatchStats:
        check_keys(batch, ("image",))
        with refuse_local_statistics(axis_name):
            return compute_batch_stats(model, state.eval_variables, normalize(batch["image"]))

    return step


def recompute_state_batch_stats(
    engine: Engine, model: nn.Module, step: StatsStep, state: TrainState, batches: Iterable[Any]
) -> TrainState:
    """Runs `recompute_batch_stats` on an engine's devices, for the weights that are evaluated.

    Args:
      engine: the engine that the state is on.
      model: the model of `step`.
      step: made by `make_stats_step`, compiled by the engine.
      state: the train state; not changed, so that training continues with its running averages.
      batches: batches of equal size, on the engine's devices.

    Returns:
      The state with new batch statistics, on the same devices; `state` itself if all are frozen.
    """
    updated = _updated_norms(model, state.batch_stats)
    if not updated:
        return state

    def compute(stats: BatchStats, batch: Any) -> BatchStats:
        return step(dataclasses.replace(state, batch_stats=stats), batch)

    start = engine.put_state(_start(engine.to_host(state.batch_stats), updated))
    stats = population_stats(map(engine.to_host, per_batch_stats(compute, start, batches)))
    return dataclasses.replace(state, batch_stats=engine.put_state(stats))
