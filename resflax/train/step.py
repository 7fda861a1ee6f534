"""The training step, as a pure function.

A step does not depend on how it is transformed: eager, under `jit`, `vmap` over an ensemble,
`pmap`, or `jit` over a mesh. Only `axis_name`, the mapped axis to average over, is part of it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Key, UInt32

from resflax.data.augment import Augment, Mix, flip_parity
from resflax.kernels.varying import vary_over, varying_axes
from resflax.nn import identity
from resflax.train.accumulate import accumulate
from resflax.train.choice import Choice
from resflax.train.freeze import merge_params, split_params
from resflax.train.metrics import (
    Metrics,
    check_keys,
    check_labels,
    correct,
    cross_entropy,
    one_hot_or_nan,
)
from resflax.train.nonfinite import ACTIONS, check_finite, revert_update
from resflax.train.state import TrainState, ema_update

Batch = dict[str, Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


class TrainInputs(NamedTuple):
    """A batch after augmentation: inputs of the network and of the loss.

    Attributes:
      image: normalized images.
      target: targets of the loss, labels or the probability of each class.
      label: labels for the accuracy.
      dropout_keys: one key per example for a network that needs them, else None.
    """

    image: Float[Array, "n height width channels"]
    target: Int[Array, " n"] | Float[Array, "n classes"]
    label: Int[Array, " n"]
    dropout_keys: Key[Array, " n"] | None


def example_keys(
    seed: UInt32[Array, ""], step: Int[Array, ""], index: Int[Array, " n"]
) -> Key[Array, " n"]:
    """Returns one key per example, a function of (seed, step, example) only."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def make_prepare_batch(
    augment: Augment | None,
    normalize: Callable[[Array], Array],
    mix: Mix | None,
    num_classes: int,
    needs_rng: bool,
) -> Callable[[TrainState, Batch], TrainInputs]:
    """Makes `(state, batch) -> inputs`: augmentation, normalization, mixup and CutMix."""

    def prepare(state: TrainState, batch: Batch) -> TrainInputs:
        needs_keys = augment or mix or needs_rng
        target_key = "target" if "target" in batch else "label"
        check_keys(batch, ("image", target_key, *["index"] * bool(needs_keys)))
        images, target = batch["image"], batch[target_key]
        label = batch["label"] if "label" in batch else jnp.argmax(target, -1)
        check_labels(label, len(images))
        keys: Any = None
        if needs_keys:
            # Each consumer folds the number of its own stream into them.
            keys = example_keys(state.seed, state.step, batch["index"])
        if augment and "epoch" in batch:
            parity = flip_parity(state.seed, batch["index"], batch["epoch"])
            images = augment(keys, images, parity)
        elif augment:
            images = augment(keys, images)
        images = normalize(images)
        if mix:
            soft = one_hot_or_nan(target, num_classes) if target.ndim == 1 else target
            images, target = mix(keys, images, soft)
        return TrainInputs(images, target, label, keys if needs_rng else None)

    return prepare


def _gradient(
    model: nn.Module,
    label_smoothing: float | Choice,
    drop_path_rates: Float[Array, " blocks"] | None,
    params: Any,
    frozen: Any,
    batch_stats: Any,
    batch: TrainInputs,
) -> tuple[Any, Any, Metrics]:
    """Returns the gradient of the mean loss, the new batch statistics, loss and accuracy.

    The gradient is that for `params`, which are trainable; nothing is computed for `frozen` ones.
    """
    rng: dict[str, Any] = {}
    if batch.dropout_keys is not None:
        rng = {"dropout_keys": batch.dropout_keys}
    if drop_path_rates is not None:
        rng["drop_path_rates"] = drop_path_rates

    def loss_fn(params: Any) -> tuple[Array, tuple[Any, Array]]:
        logits, updated = model.apply(
            {"params": merge_params(params, frozen), "batch_stats": batch_stats},
            batch.image,
            train=True,
            mutable=["batch_stats"],
            **rng,
        )
        # The dtypes of the state must not change from step to step.
        new_stats = jax.tree.map(
            lambda new, old: new.astype(old.dtype), updated.get("batch_stats", {}), batch_stats
        )
        return jnp.mean(cross_entropy(logits, batch.target, label_smoothing)), (new_stats, logits)

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (new_stats, logits)), grads = grad_fn(params)
    return grads, new_stats, {"loss": loss, "accuracy": jnp.mean(correct(logits, batch.label))}


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    augment: Augment | None = None,
    normalize: Callable[[Array], Array] = identity,
    mix: Mix | None = None,
    num_classes: int | None = None,
    label_smoothing: float | Choice = 0.0,
    drop_path_rates: Float[Array, " blocks"] | None = None,
    grad_accum_steps: int = 1,
    ema_decay: float = 0.0,
    on_nonfinite: str = "ignore",
    freeze: Sequence[str] = (),
    axis_name: str | None = None,
) -> TrainStep:
    """Makes a pure `(state, batch) -> (state, metrics)`.

    The batch has "image" `(n, height, width, channels)`, "label" int `(n,)` and, for anything
    random, "index" int32 `(n,)`, the example indices. It may have "epoch", int32 `(n,)`, how
    often each example was used before, and "target", float32 `(n, classes)`, the probability of
    each class, for the loss. The metrics are the means over the global batch of "loss" and
    "accuracy", float32 scalars, before the update. An example counts as correct if the largest
    logit is that of its own label, whatever it was mixed with; without labels, that of its largest
    target.

    Args:
      model: a linen module called as `model(x, train=True)`; with an `axis_name` it must have a
        field of that name (batch norm averages over it). If its `needs_rng` is true, it is also
        called with `dropout_keys`, one key per example.
      optimizer: an optax transformation, including its schedule.
      augment: `(keys, images) -> images`, one key per example; with "epoch" in the batch
        `(keys, images, parity) -> images`, see `resflax.data.augment.flip_parity`.
      normalize: maps stored images to the network's input.
      mix: `(keys, images, targets) -> (images, targets)`, one key per example: maps the network's
        input and one-hot targets (or those of the batch) to mixed ones. It is called with the whole
        batch, or a device's part of it, before the batch is split into micro-batches. Labels are
        smoothed afterwards, which is equivalent if the weights of a mixed target add up to 1.
      num_classes: columns of the targets; required by `mix`.
      label_smoothing: see `cross_entropy`.
      drop_path_rates: replace those of a `ResNet` whose spec has drop path; they may be traced.
      grad_accum_steps: number of micro-batches; see `accumulate`.
      ema_decay: decay of the averaged parameters of a state made with `ema=True`; 0 for none.
      on_nonfinite: "stop" adds "finite" to the metrics (see `check_finite`), for the caller to
        stop; "skip" also discards the update where anything is not finite.
      freeze: patterns of parameters that the step does not change and computes no gradient for,
        those of `create_state`; see `resflax.train.freeze`. Batch statistics still change, except
        those of `model.batch_norm.frozen`.
      axis_name: the mapped axis over which the batch is split, if any.

    Raises:
      ValueError: on a `mix` without `num_classes`, or an unknown `on_nonfinite`.
      UserError: from the step when traced, if labels are not integers of shape `(n,)` or targets
        not floats of shape `(n, classes)`. A label that is not in `range(classes)` gives a loss of
        NaN; see `on_nonfinite`.
    """
    model = model.clone(axis_name=axis_name) if axis_name else model
    average = partial(lax.pmean, axis_name=axis_name) if axis_name else lambda tree: tree
    if mix and not num_classes:
        raise ValueError("mix needs one-hot targets: expected num_classes")
    if on_nonfinite not in ACTIONS:
        raise ValueError(f"on_nonfinite is {on_nonfinite!r}: expected one of {ACTIONS}")
    needs_rng = getattr(model, "needs_rng", False)
    prepare = make_prepare_batch(augment, normalize, mix, num_classes or 0, needs_rng)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        trainable, frozen = split_params(state.params, freeze)
        # Otherwise JAX would sum the gradients over the devices, and `average` not divide them.
        axes = varying_axes(*jax.tree.leaves(batch))
        local = jax.tree.map(partial(vary_over, axes), trainable)
        gradient = partial(_gradient, model, label_smoothing, drop_path_rates, local, frozen)
        grads, batch_stats, metrics = accumulate(
            gradient, local, state.batch_stats, prepare(state, batch), grad_accum_steps
        )
        grads, metrics = average((grads, metrics))
        # optax's schedules mix ints and floats, which strict dtype promotion rejects.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(grads, state.opt_state, trainable)
        trainable = optax.apply_updates(trainable, updates)
        params, ema = merge_params(trainable, frozen), state.ema
        if ema_decay:
            averaged, frozen = split_params(ema, freeze)
            ema = merge_params(ema_update(averaged, trainable, ema_decay, state.step), frozen)
        new_state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=ema,
        )
        if on_nonfinite == "ignore":
            return new_state, metrics
        finite = check_finite(metrics["loss"], grads, params, batch_stats)
        if on_nonfinite == "skip":
            new_state = revert_update(jnp.all(finite), new_state, state)
        return new_state, metrics | {"finite": finite}

    return step
