"""The training step, as a pure function.

A step does not depend on how it is transformed: eager, under `jit`, `vmap` over an ensemble,
`pmap`, or `jit` over a mesh. Only `axis_name`, the mapped axis to average over, is part of it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from resflax.data.augment import Augment, Mix
from resflax.data.augment.splits import Splits
from resflax.kernels.varying import vary_over, varying_axes
from resflax.nn import identity
from resflax.nn.batch_norm import statistics_dtype
from resflax.train.accumulate import accumulate
from resflax.train.averaging import EMA, average_params
from resflax.train.choice import Choice
from resflax.train.distill import Distillation, feature_names, make_step_loss
from resflax.train.freeze import freeze_statistics, merge_params, split_params
from resflax.train.jsd import add_jensen_shannon, of_first_copy
from resflax.train.losses import cross_entropy
from resflax.train.metrics import METRICS, ExampleFn, Metrics
from resflax.train.module_checks import (
    check_functions,
    check_module,
    check_training_dtype,
    check_values,
    refuse_local_statistics,
    with_axis_name,
)
from resflax.train.nonfinite import ACTIONS, check_finite, revert_update
from resflax.train.optimizer_arguments import optimizer_arguments
from resflax.train.sam import perturb
from resflax.train.state import TrainState
from resflax.train.step_inputs import Batch, TrainInputs, make_prepare_batch
from resflax.train.variables import keep_types

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def _mean(name: str, values: Any, examples: int) -> Float[Array, ""]:
    """Returns the mean of a loss or a metric over the examples, in float32 or float64."""
    check_values(name, values, examples)
    return jnp.mean(values.astype(statistics_dtype(values)))


def _gradient(
    model: nn.Module,
    loss_fn: Callable[[Any, TrainInputs, Mapping[str, Array]], Array],
    features: tuple[str, ...],
    metrics: Mapping[str, ExampleFn],
    drop_path_rates: Float[Array, " blocks"] | None,
    has_copies: bool,
    params: Any,
    frozen: Any,
    collections: dict[str, Any],
    batch: TrainInputs,
) -> tuple[Any, dict[str, Any], Metrics]:
    """Returns the gradient of the mean loss, the new collections, the mean loss and metrics.

    With copies, the network gets all of them as one batch, and the loss its outputs as
    `(n, copies, classes)`.

    The gradient is that for `params`, which are trainable; nothing is computed for `frozen` ones.
    """
    examples = len(batch.image)
    images, keys = batch.image, batch.dropout_keys
    copies = images.shape[1:2] if has_copies else ()
    if copies:
        images = images.reshape(-1, *images.shape[2:])
        keys = None if keys is None else keys.reshape(-1)
    extra: dict[str, Any] = {"capture": features} if features else {}
    if keys is not None:
        extra["dropout_keys"] = keys
    if drop_path_rates is not None:
        extra["drop_path_rates"] = drop_path_rates

    def loss(params: Any) -> tuple[Array, tuple[Any, Any]]:
        results: Any = model.apply(
            {"params": merge_params(params, frozen), **collections},
            images,
            train=True,
            mutable=list(collections),
            **extra,
        )
        (outputs, updated), maps = results if features else (results, {})
        if copies:
            outputs = outputs.reshape(examples, *copies, -1)
        # The types of the state must not change from step to step.
        new = keep_types(collections, updated)
        return _mean("loss_fn", loss_fn(outputs, batch, maps), examples), (new, outputs)

    (value, (new, outputs)), grads = jax.value_and_grad(loss, has_aux=True)(params)
    results = {
        name: _mean(f"metric {name!r}", metric(outputs, batch.label), examples)
        for name, metric in metrics.items()
    }
    return grads, new, {"loss": value, **results}


def _of_copies(
    augment: Any, loss_fn: ExampleFn, metrics: Mapping[str, ExampleFn], jsd_weight: float
) -> tuple[ExampleFn, Mapping[str, ExampleFn]]:
    """Returns loss and metrics as functions of all copies of an example, if there are several."""
    if not isinstance(augment, Splits):
        return loss_fn, metrics
    metrics = {name: of_first_copy(metric) for name, metric in metrics.items()}
    return add_jensen_shannon(loss_fn, jsd_weight), metrics


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    augment: Augment | Splits | None = None,
    normalize: Callable[[Array], Array] = identity,
    mix: Mix | None = None,
    num_classes: int | None = None,
    loss_fn: ExampleFn = cross_entropy,
    label_smoothing: float | Choice = 0.0,
    metrics: Mapping[str, ExampleFn] = METRICS,
    distillation: Distillation | None = None,
    jsd_weight: float = 12.0,
    drop_path_rates: Float[Array, " blocks"] | None = None,
    mix_steps: int | None = None,
    grad_accum_steps: int = 1,
    sam_rho: float = 0.0,
    ema_decay: float | EMA = 0.0,
    on_nonfinite: str = "ignore",
    freeze: Sequence[str] = (),
    freeze_stats: bool = True,
    axis_name: str | None = None,
) -> TrainStep:
    """Makes a pure `(state, batch) -> (state, metrics)`.

    The batch has "image" `(n, height, width, channels)`, "label" int `(n,)` and, for anything
    random, "index" int32 `(n,)`, the example indices. It may have "epoch", int32 `(n,)`, how
    often each example was used before, and "target", float32 `(n, classes)`, the probability of
    each class, for the loss. The metrics are the means over the global batch of "loss" and
    of each of `metrics`, float32 scalars, before the update.

    A network with several outputs, or one that is not a classifier, is trained by a `loss_fn` and
    `metrics` that take its outputs. "label" and "target" may then be trees of arrays, and "target"
    an array of any shape and dtype, with a leading axis of examples.

    Args:
      model: a linen module called as `model(x, train=True)`; with an `axis_name` it must have a
        field of that name (batch norm averages over it). If its `needs_rng` is true, it is also
        called with `dropout_keys`, one key per example. Its collections besides "params" are
        mutable. With an `axis_name`, those in `state.collections` are averaged over the devices,
        integers by their maximum.
      optimizer: an optax transformation, including its schedule; one that takes extra arguments,
        such as the loss, gets those of `optimizer_arguments`.
      augment: `(keys, images) -> images`, one key per example; with "epoch" in the batch
        `(keys, images, parity) -> images`, see `resflax.data.augment.flip_parity`; or `Splits`,
        which makes several copies of each example.
      normalize: maps stored images to the network's input.
      mix: `(keys, images, targets) -> (images, targets)`, one key per example: maps the network's
        input and one-hot targets (or those of the batch) to mixed ones. It is called with the whole
        batch, or a device's part of it, before the batch is split into micro-batches. Labels are
        smoothed afterwards, which is equivalent if the weights of a mixed target add up to 1. The
        targets may become any tree that `loss_fn` takes, such as one with a teacher's logits for
        the same images.
      num_classes: columns of the targets; required by `mix`.
      loss_fn: `(logits, targets) -> (n,)`, floats. `logits` is what the network returns, in its
        dtype; `targets` are those of `mix`, else the batch's "target", else its "label".
      label_smoothing: given to `loss_fn` as a keyword argument, unless it is 0.
      metrics: functions `(logits, labels) -> (n,)`, floats, by name. `labels` are the batch's,
        also where mixup changed the targets; without labels, its targets. `METRICS | {...}` adds to
        "accuracy".
      distillation: a teacher, whose variables are `state.teacher`, and the weight of its part of
        the loss; the rest is `loss_fn`.
      jsd_weight: weight of the Jensen-Shannon divergence of the copies of an example, where
        `augment` makes copies; see `resflax.train.jsd`.
      drop_path_rates: replace those of a `ResNet` whose spec has drop path; they may be traced.
      mix_steps: number of steps, from the start of the run, in which `mix` is applied; by default
        all. What `mix` returns must then have the shapes of what it is given.
      grad_accum_steps: number of micro-batches; see `accumulate`.
      sam_rho: distance of sharpness-aware minimization, 0 for none: the optimizer gets the gradient
        of the same batch at `w + rho g / |g|`, see `resflax.train.sam`. Metrics and batch
        statistics are those of the first pass, at w.
      ema_decay: decay of the averaged parameters of a state made with `ema=True`, 0 for none; or an
        `EMA`, which sets more than the decay. A schedule-free optimizer has an average of its own,
        which is copied there instead.
      on_nonfinite: "stop" adds "finite" to the metrics (see `check_finite`), for the caller to
        stop; "skip" also discards the update where anything is not finite.
      freeze: patterns of parameters that the step does not change and computes no gradient for,
        those of `create_state`; see `resflax.train.freeze`.
      freeze_stats: whether batch norms with a frozen scale and bias also keep their statistics and
        normalize by them, as with `include_bn_running_stats` of timm's `freeze`. Those of other
        norms change, except those of `model.batch_norm.frozen`.
      axis_name: the mapped axis over which the batch is split, if any.

    Raises:
      ValueError: on a `mix` without `num_classes`, or an unknown `on_nonfinite`.
      UserError: if the model cannot be called as described, lacks the field `axis_name`, or is
        known to return something else than logits, which the default loss and accuracy take; on a
        `loss_fn` without the argument `label_smoothing` if there is one. From the step when traced,
        if labels are not integers of shape `(n,)` or targets not floats of shape `(n, classes)`.
        A label that is not in `range(classes)` gives a loss of NaN; see `on_nonfinite`. If
        `freeze_stats` needs a field `batch_norm`, see `resflax.train.freeze`.
    """
    check_module(model)
    check_training_dtype(model)
    model = with_axis_name(model, axis_name)
    smooths = isinstance(label_smoothing, Choice) or label_smoothing != 0
    check_functions(model, loss_fn, metrics, ("label_smoothing",) if smooths else ())
    any_loss: Any = loss_fn  # whose other arguments are not typed
    loss_fn = partial(any_loss, label_smoothing=label_smoothing) if smooths else any_loss
    loss_fn, metrics = _of_copies(augment, loss_fn, metrics, jsd_weight)
    ema = ema_decay if isinstance(ema_decay, EMA) else EMA(ema_decay)
    average = partial(lax.pmean, axis_name=axis_name) if axis_name else lambda tree: tree
    if mix and not num_classes:
        raise ValueError("mix needs one-hot targets: expected num_classes")
    if on_nonfinite not in ACTIONS:
        raise ValueError(f"on_nonfinite is {on_nonfinite!r}: expected one of {ACTIONS}")
    features = feature_names(model, distillation)
    needs_rng = getattr(model, "needs_rng", False)
    prepare = make_prepare_batch(augment, normalize, mix, num_classes or 0, needs_rng, mix_steps)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        trainable, frozen = split_params(state.params, freeze)
        network = freeze_statistics(model, state.variables, freeze) if freeze_stats else model
        # Otherwise JAX would sum the gradients over the devices, and `average` not divide them.
        vary = partial(vary_over, varying_axes(*jax.tree.leaves(batch)))
        old = {"batch_stats": state.batch_stats, **jax.tree.map(vary, state.collections)}
        inputs = prepare(state, batch)
        loss = make_step_loss(loss_fn, distillation, state.teacher)

        def evaluate(params: Any) -> tuple[Any, dict[str, Any], Metrics]:
            local = jax.tree.map(vary, params)
            has_copies = isinstance(augment, Splits)
            settings = network, loss, features, metrics, drop_path_rates, has_copies
            gradient = partial(_gradient, *settings, local, frozen)
            with refuse_local_statistics(axis_name):
                grads, new, results = accumulate(gradient, local, old, inputs, grad_accum_steps)
            grads, results = average((grads, results))
            return grads, new, results

        def gradient_and_loss(params: Any) -> tuple[Any, Array]:
            grads, _, results = evaluate(params)
            return grads, results["loss"]

        grads, collections, results = evaluate(trainable)
        batch_stats = collections.pop("batch_stats")
        at = grads, results["loss"]
        extra = optimizer_arguments(optimizer.update, gradient_and_loss, at)
        if sam_rho:
            grads, _, _ = evaluate(perturb(trainable, grads, sam_rho))
        # optax's schedules mix ints and floats, which strict dtype promotion rejects.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(grads, state.opt_state, trainable, **extra)
        trainable = optax.apply_updates(trainable, updates)
        params, averaged = merge_params(trainable, frozen), state.ema
        if averaged:
            averaged, frozen = split_params(averaged, freeze)
            averaged = average_params(averaged, trainable, opt_state, ema, state.step)
            averaged = merge_params(averaged, frozen)
        new_state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            collections=_average_collections(collections, axis_name),
            opt_state=opt_state,
            ema=averaged,
        )
        if on_nonfinite == "ignore":
            return new_state, results
        finite = check_finite(results["loss"], grads, params, batch_stats)
        if on_nonfinite == "skip":
            new_state = revert_update(jnp.all(finite), new_state, state)
        return new_state, results | {"finite": finite}

    return step


def _average_collections(collections: Any, axis_name: str | None) -> Any:
    """Returns variable collections that each device has updated, averaged over the devices."""

    def average(x: Array) -> Array:
        is_float = jnp.issubdtype(x.dtype, jnp.inexact)
        return (lax.pmean if is_float else lax.pmax)(x, axis_name)

    return jax.tree.map(average, collections) if axis_name else collections
