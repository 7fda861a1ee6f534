"""One step of training, and one of evaluation, as pure functions.

A step ignores how it will be transformed: plain, under `jit`, `vmap` over an ensemble, `pmap`, or
`jit` over a mesh. `axis_name` is its only trace: the mapped axis to average over.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from resflax.data.augment import Augment, Mix, flip_parity
from resflax.nn import identity
from resflax.train.accumulate import accumulate
from resflax.train.ema import ema_update
from resflax.train.metrics import Metrics, correct, cross_entropy, one_hot
from resflax.train.nonfinite import ACTIONS, check_finite, revert_update
from resflax.train.state import TrainState

Array = jax.Array
Batch = dict[str, Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
EvalStep = Callable[[TrainState, Batch], Metrics]


class TrainInputs(NamedTuple):
    """A batch as the network trains on it: its input, what the loss and the accuracy go by.

    `target` is int `(n,)` or float32 `(n, classes)`, `label` int `(n,)`; `keys` are one an example,
    `(n,)`, for a network that draws random numbers.
    """

    image: Array
    target: Array
    label: Array
    keys: Array | None


def example_keys(seed: Array, step: Array, index: Array) -> Array:
    """One key for each example: a function of (seed, step, example), so of no device count."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def make_prepare_batch(
    augment: Augment | None,
    normalize: Callable[[Array], Array],
    mix: Mix | None,
    num_classes: int,
    needs_rng: bool,
) -> Callable[[TrainState, Batch], TrainInputs]:
    """From a state and its batch to what the network trains on."""

    def prepare(state: TrainState, batch: Batch) -> TrainInputs:
        images, target = batch["image"], batch["target" if "target" in batch else "label"]
        label = batch["label"] if "label" in batch else jnp.argmax(target, -1)
        keys: Any = None
        if augment or mix or needs_rng:
            # Each user folds the number of its own stream into them.
            keys = example_keys(state.seed, state.step, batch["index"])
        if augment and "epoch" in batch:
            images = augment(keys, images, flip_parity(state.seed, batch["index"], batch["epoch"]))
        elif augment:
            images = augment(keys, images)
        images = normalize(images)
        if mix:
            soft = one_hot(target, num_classes) if target.ndim == 1 else target
            images, target = mix(keys, images, soft)
        return TrainInputs(images, target, label, keys if needs_rng else None)

    return prepare


def _gradient(
    model: nn.Module, label_smoothing: float, params: Any, batch_stats: Any, batch: TrainInputs
) -> tuple[Any, Any, Metrics]:
    """The gradient of the mean loss, the batch statistics behind it, loss and accuracy."""
    drawn: dict[str, Any] = {} if batch.keys is None else {"dropout_keys": batch.keys}

    def loss_fn(params: Any) -> tuple[Array, tuple[Any, Array]]:
        logits, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            batch.image,
            train=True,
            mutable=["batch_stats"],
            **drawn,
        )
        # Of the dtype that they had: the state's type must not change from step to step.
        after = jax.tree.map(
            lambda new, old: new.astype(old.dtype), updated.get("batch_stats", {}), batch_stats
        )
        return jnp.mean(cross_entropy(logits, batch.target, label_smoothing)), (after, logits)

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (after, logits)), grads = grad_fn(params)
    return grads, after, {"loss": loss, "accuracy": jnp.mean(correct(logits, batch.label))}


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    augment: Augment | None = None,
    normalize: Callable[[Array], Array] = identity,
    mix: Mix | None = None,
    num_classes: int | None = None,
    label_smoothing: float = 0.0,
    grad_accum_steps: int = 1,
    ema_decay: float = 0.0,
    on_nonfinite: str = "ignore",
    axis_name: str | None = None,
) -> TrainStep:
    """A pure `(state, batch) -> (state, metrics)`.

    The batch holds "image" `(n, height, width, channels)`, "label" int `(n,)` and, for whatever is
    random, "index" int32 `(n,)`, the examples' numbers. It may hold "epoch", int32 `(n,)`, how
    often each example was seen before, and "target", float32 `(n, classes)`, the probability of
    each class, which the loss then goes by. The metrics are the means over the global batch of
    "loss" and "accuracy", float32 scalars, from before the update. An example is right where the
    largest logit is its own label's, whatever it was mixed with; without labels, its target's
    largest.

    Args:
      model: a linen module called as `model(x, train=True)`; with an `axis_name` it must have the
        field of that name (batch norm averages over it). One whose `needs_rng` is true is called with
        `dropout_keys` too, one an example.
      optimizer: an optax transformation, with its schedule inside.
      augment: `(keys, images) -> images`, one key an example; with "epoch" in the batch
        `(keys, images, flip_parity) -> images`, see `resflax.data.augment.flip_parity`.
      normalize: from stored images to the network's input.
      mix: `(keys, images, targets) -> (images, targets)`, one key an example: from the network's
        input and targets of 0 and 1 (or those of the batch) to other ones. It sees the whole batch,
        or a device's part of it: micro-batches are cut afterwards. Labels are smoothed afterwards
        too, which is the same where a mixed target's weights add up to 1.
      num_classes: columns of the targets; needed by `mix`.
      label_smoothing: see `cross_entropy`.
      grad_accum_steps: how many micro-batches the batch is cut into; see `accumulate`.
      ema_decay: of the average of the parameters in a state made with `ema=True`; 0 for none.
      on_nonfinite: "stop" adds `check_finite` to the metrics, for the caller to stop by; "skip" also
        leaves the state as it was, but for its step, where anything is not finite.
      axis_name: the mapped axis that the batch is split over, if there is one.

    Raises:
      ValueError: if there is a `mix` and no `num_classes`, or on an unknown `on_nonfinite`.
    """
    model = model.clone(axis_name=axis_name) if axis_name else model
    average = partial(lax.pmean, axis_name=axis_name) if axis_name else lambda tree: tree
    if mix and not num_classes:
        raise ValueError("targets to mix have a column a class: expected num_classes")
    if on_nonfinite not in ACTIONS:
        raise ValueError(f"on_nonfinite is {on_nonfinite!r}: expected one of {ACTIONS}")
    needs_rng = getattr(model, "needs_rng", False)
    prepare = make_prepare_batch(augment, normalize, mix, num_classes or 0, needs_rng)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        gradient = partial(_gradient, model, label_smoothing, state.params)
        grads, batch_stats, metrics = accumulate(
            gradient, state.params, state.batch_stats, prepare(state, batch), grad_accum_steps
        )
        grads, metrics = average((grads, metrics))
        # optax's schedules mix integer counts with floats, which strict promotion would refuse.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new_state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=ema_update(state.ema, params, ema_decay, state.step) if ema_decay else state.ema,
        )
        if on_nonfinite == "ignore":
            return new_state, metrics
        good = check_finite(metrics["loss"], grads, params, batch_stats)
        if on_nonfinite == "skip":
            new_state = revert_update(jnp.all(good), new_state, state)
        return new_state, metrics | {"finite": good}

    return step


def make_eval_step(
    model: nn.Module,
    *,
    normalize: Callable[[Array], Array] = identity,
    axis_name: str | None = None,
) -> EvalStep:
    """A pure `(state, batch) -> metrics`: sums over the global batch, not means.

    Where the state has an average of the parameters, that is evaluated.

    The batch holds "image", "label" and "weight" float32 `(n,)`: 1 for an example that counts, 0
    for filling. The metrics are the weighted sums "loss" (without label smoothing) and "correct",
    and "count", the sum of the weights.
    """

    def step(state: TrainState, batch: Batch) -> Metrics:
        logits: Any = model.apply(state.eval_variables, normalize(batch["image"]), train=False)
        sums = {
            "loss": jnp.sum(batch["weight"] * cross_entropy(logits, batch["label"])),
            "correct": jnp.sum(batch["weight"] * correct(logits, batch["label"])),
            "count": jnp.sum(batch["weight"]),
        }
        return lax.psum(sums, axis_name) if axis_name else sums

    return step
