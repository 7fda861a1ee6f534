"""One step of training, and one of evaluation, as pure functions.

A step ignores how it will be transformed: plain, under `jit`, `vmap` over an ensemble, `pmap`, or
`jit` over a mesh. `axis_name` is its only trace: the mapped axis to average over.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from resflax.train.metrics import Metrics, correct, cross_entropy
from resflax.train.state import TrainState

Array = jax.Array
Batch = dict[str, Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
EvalStep = Callable[[TrainState, Batch], Metrics]


def _as_is(images: Array) -> Array:
    return images


def example_keys(seed: Array, step: Array, index: Array) -> Array:
    """One key for each example: a function of (seed, step, example), so of no device count."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def _train_logits(
    model: nn.Module, params: Any, batch_stats: Any, images: Array
) -> tuple[Array, Any]:
    """Logits in training mode, and the batch statistics behind them."""
    variables = {"params": params, "batch_stats": batch_stats}
    logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
    # Of the dtype that they had: the state's type must not change from step to step.
    after = jax.tree.map(
        lambda new, old: new.astype(old.dtype), updated.get("batch_stats", {}), batch_stats
    )
    return logits, after


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    augment: Callable[[Array, Array], Array] | None = None,
    normalize: Callable[[Array], Array] = _as_is,
    label_smoothing: float = 0.0,
    axis_name: str | None = None,
) -> TrainStep:
    """A pure `(state, batch) -> (state, metrics)`.

    The batch holds "image" `(n, height, width, channels)`, "label" int `(n,)` and, for `augment`,
    "index" int32 `(n,)`, the examples' numbers. The metrics are the means over the global batch of
    "loss" and "accuracy", float32 scalars, from before the update.

    Args:
      model: a linen module called as `model(x, train=True)`; with an `axis_name` it must have the
        field of that name (batch norm averages over it).
      optimizer: an optax transformation, with its schedule inside.
      augment: `(keys, images) -> images`, one key an example.
      normalize: from stored images to the network's input.
      label_smoothing: see `cross_entropy`.
      axis_name: the mapped axis that the batch is split over, if there is one.
    """
    model = model.clone(axis_name=axis_name) if axis_name else model
    average = partial(lax.pmean, axis_name=axis_name) if axis_name else lambda tree: tree

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        images = batch["image"]
        if augment:
            images = augment(example_keys(state.seed, state.step, batch["index"]), images)
        images = normalize(images)

        def loss_fn(params: Any) -> tuple[Array, tuple[Any, Array]]:
            logits, batch_stats = _train_logits(model, params, state.batch_stats, images)
            loss = jnp.mean(cross_entropy(logits, batch["label"], label_smoothing))
            return loss, (batch_stats, logits)

        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (batch_stats, logits)), grads = grad_fn(state.params)
        # optax's schedules mix integer counts with floats, which strict promotion would refuse.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(average(grads), state.opt_state, state.params)
        metrics = {"loss": loss, "accuracy": jnp.mean(correct(logits, batch["label"]))}
        new_state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return new_state, average(metrics)

    return step


def make_eval_step(
    model: nn.Module,
    *,
    normalize: Callable[[Array], Array] = _as_is,
    axis_name: str | None = None,
) -> EvalStep:
    """A pure `(state, batch) -> metrics`: sums over the global batch, not means.

    The batch holds "image", "label" and "weight" float32 `(n,)`: 1 for an example that counts, 0
    for filling. The metrics are the weighted sums "loss" (without label smoothing) and "correct",
    and "count", the sum of the weights.
    """

    def step(state: TrainState, batch: Batch) -> Metrics:
        logits: Any = model.apply(state.variables, normalize(batch["image"]), train=False)
        sums = {
            "loss": jnp.sum(batch["weight"] * cross_entropy(logits, batch["label"])),
            "correct": jnp.sum(batch["weight"] * correct(logits, batch["label"])),
            "count": jnp.sum(batch["weight"]),
        }
        return lax.psum(sums, axis_name) if axis_name else sums

    return step
