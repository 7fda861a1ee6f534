"""Evaluation steps, as pure functions that can be transformed like the training step."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from resflax.data.views import TTA, test_time_views
from resflax.errors import UserError, unknown
from resflax.nn import ResNet, identity
from resflax.train.losses import cross_entropy
from resflax.train.metrics import (
    ExampleFn,
    Metrics,
    check_eval_batch,
    check_labels_of,
    correct,
)
from resflax.train.module_checks import check_functions, check_logits, check_module, check_values
from resflax.train.state import TrainState
from resflax.train.step_inputs import Batch, loss_and_metric_targets

EvalStep = Callable[[TrainState, Batch], Metrics]
# The sums of an evaluation over its examples, by name, besides its loss.
SUMS: Mapping[str, ExampleFn] = MappingProxyType({"correct": correct})


def make_eval_step(
    model: nn.Module,
    *,
    normalize: Callable[[Array], Array] = identity,
    loss_fn: ExampleFn = cross_entropy,
    metrics: Mapping[str, ExampleFn] = SUMS,
    tta: str = "none",
    axis_name: str | None = None,
) -> EvalStep:
    """Makes a pure `(state, batch) -> metrics`, with sums over the global batch instead of means.

    The batch has "image" and "weight" float32 `(n,)`: 1 for an example that counts, 0 for padding;
    and "label" or "target" or both, as for `make_train_step`. The metrics are the weighted sums
    "loss" (without label smoothing) and "correct", or those of `metrics`, and "count", the sum of
    the weights. Averaged parameters are evaluated if the state has them. A label that is not in
    `range(classes)` gives a loss of NaN.

    Args:
      model: a linen module called as `model(x, train=False)`.
      normalize: maps stored images to the network's input.
      loss_fn: `(logits, targets) -> (n,)`, as for `make_train_step`: `targets` are the batch's
        "target", else its "label".
      metrics: functions `(logits, labels) -> (n,)`, by name, of the batch's labels, or targets
        without labels. `SUMS | {...}` adds to "correct".
      tta: views of an image whose probabilities are averaged, a name in `resflax.data.views.TTA`;
        the logits are then the logarithms of their mean.
      axis_name: the mapped axis over which the batch is split, if any.

    Raises:
      UserError: if the model is known to return something else than one array of logits; from the
        step when traced, if labels are not integers of shape `(n,)`, or weights
        have another shape.
    """
    check_module(model)
    check_functions(model, loss_fn, metrics)
    check_tta(model, tta)

    def step(state: TrainState, batch: Batch) -> Metrics:
        check_eval_batch(batch)
        images = normalize(batch["image"])
        logits = average_views(partial(_apply, model, state.eval_variables), images, tta)
        sums = {"count": jnp.sum(batch["weight"])}
        target, label = loss_and_metric_targets(batch)
        for name, function, truth in (
            ("loss", loss_fn, target),
            *((name, function, label) for name, function in metrics.items()),
        ):
            values = function(logits, truth)
            check_values(name, values, len(batch["image"]))
            sums[name] = jnp.sum(batch["weight"] * values)
        return lax.psum(sums, axis_name) if axis_name else sums

    return step


def _apply(model: nn.Module, variables: Any, images: Array, **options: Any) -> Any:
    return model.apply(variables, images, train=False, **options)


def average_views(predict: Callable[[Array], Any], images: Array, tta: str) -> Any:
    """Returns the logarithms of the mean probabilities of views of images.

    Args:
      predict: from images to logits `(..., classes)`, or any outputs without views.
      images: `(n, height, width, channels)`.
      tta: a name in `resflax.data.views.TTA`; "none" for what `predict` returns.
    """
    views = test_time_views(images, tta)
    if len(views) == 1:
        return predict(images)
    log_p = jnp.stack([jax.nn.log_softmax(predict(view).astype(jnp.float32)) for view in views])
    return jax.nn.logsumexp(log_p, 0) - math.log(len(views))


def check_tta(model: nn.Module, tta: str) -> None:
    """Raises `UserError` on unknown views, and on views with other outputs than logits."""
    if tta not in TTA:
        raise unknown("tta", tta, TTA)
    if tta != "none":
        check_logits(model, f"tta={tta!r}", "use tta='none'")


def make_predict_step(
    model: nn.Module,
    *,
    normalize: Callable[[Array], Array] = identity,
    members: bool = False,
    capture: str | Sequence[str] = (),
    tta: str = "none",
    axis_name: str | None = None,
) -> EvalStep:
    """Makes a pure `(state, batch) -> per-example arrays`, for metrics that are not sums.

    The batch is that of `make_eval_step`. The results are "logits" float32 `(n, classes)`, and the
    batch's "label" and "weight".

    Args:
      model: a linen module called as `model(x, train=False)`.
      normalize: maps stored images to the network's input.
      members: return the logits of all members of a `ResNet` whose spec has an ensemble,
        `(members, n, classes)`.
      capture: names or patterns of intermediate outputs of a `ResNet`, which are returned too, by
        name, with a leading axis of examples; see `ResNet.apply`. Without `tta`.
      tta: as for `make_eval_step`.
      axis_name: the mapped axis over which the batch is split, to return the rows of all devices;
        None for those of this device.

    Raises:
      UserError: if the model cannot be called as described, or is known to return something else
        than one array of logits; on `members` or `capture` for another module than a `ResNet`.
    """
    check_module(model)
    check_logits(
        model, "make_predict_step", "use make_eval_step with loss_fn and metrics of its outputs"
    )
    options: dict[str, Any] = {"members": True} if members else {}
    options |= {"capture": capture} if capture else {}
    if options and not isinstance(model, ResNet):
        name = next(iter(options))
        raise UserError(f"{name} needs a ResNet: {type(model).__name__} has no such argument")
    check_tta(model, tta)
    if capture and tta != "none":
        raise UserError(f"capture is {capture!r} with tta={tta!r}: expected one of them")

    def gather(x: Array, axis: int = 0) -> Array:
        if axis_name is None:
            return x
        return lax.all_gather(x, axis_name, axis=axis, tiled=True, to="invarying")

    def step(state: TrainState, batch: Batch) -> Metrics:
        check_eval_batch(batch)
        check_labels_of(batch, ("label",))
        images = normalize(batch["image"])
        predict = partial(_apply, model, state.eval_variables, **options)
        outputs = average_views(predict, images, tta)
        logits, found = outputs if capture else (outputs, {})
        return jax.tree.map(gather, found) | {
            "logits": gather(logits.astype(jnp.float32), int(members)),
            "label": gather(batch["label"]),
            "weight": gather(batch["weight"]),
        }

    return step
