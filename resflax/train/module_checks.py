"""What a linen module of the user's own needs to be trained, checked before anything is traced.

A step calls a network as `model(x, train=...)`, and averages its batch statistics over a mapped
axis by the module's field `axis_name`.
"""

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from resflax.errors import UserError
from resflax.nn import ResNet, Spec
from resflax.nn.fields import resolve
from resflax.nn.functions import Signature, function_name
from resflax.nn.layers import make_ops
from resflax.train.losses import LOSSES
from resflax.train.metrics import ExampleFn, correct

# Modules that take images of any size are asked for their outputs with these.
PROBE_SHAPE = (1, 32, 32, 3)
# Names in the results of steps that are not those of metrics.
RESERVED = ("loss", "finite", "count")


def with_axis_name(model: nn.Module, axis_name: str | None) -> nn.Module:
    """Returns the module whose batch norms average over a mapped axis; itself for None.

    Raises:
      UserError: if the module has no field `axis_name`.
    """
    if axis_name is None:
        return model
    if not hasattr(model, "axis_name"):
        raise UserError(
            f"axis_name is {axis_name!r}, but {type(model).__name__} has no field axis_name, over"
            " which its batch norms average: add `axis_name: str | None = None` to it"
        )
    return model.clone(axis_name=axis_name)


def check_module(model: Any) -> None:
    """Raises `UserError` unless a step can call a model as `model(x, train=True)`."""
    name = type(model).__name__
    if not isinstance(model, nn.Module):
        raise UserError(f"model is a {name}: expected a linen module, called as model(x, train=)")
    keywords = ("train", *["dropout_keys"] * bool(getattr(model, "needs_rng", False)))
    parameters = inspect.signature(model.__call__).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = {p.name for p in parameters}
    for keyword in keywords:
        if keyword not in known:
            expected = ", ".join(keywords)
            raise UserError(
                f"{name}.__call__ has no argument {keyword!r}: expected (x, *, {expected})"
            )
    required = [p.name for p in parameters if p.default is p.empty and p.name not in keywords]
    if len(required) > 1:
        raise UserError(
            f"{name}.__call__ also requires {required[1]!r}: give it a default, a step calls"
            " model(x, train=True)"
        )


@contextlib.contextmanager
def refuse_local_statistics(axis_name: str | None) -> Iterator[None]:
    """Refuses batch norms of linen that would normalize by a part of the batch, as they are traced.

    Args:
      axis_name: mapped axis over which the batch is split; None for none.

    Raises:
      UserError: from a `flax.linen.BatchNorm` without `axis_name`, if the axis has several devices.
    """

    def check(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if isinstance(module, nn.BatchNorm) and context.method_name == "__call__":
            given = kwargs.get("use_running_average", args[1] if len(args) > 1 else None)
            running = module.use_running_average if given is None else given
            if not running and module.axis_name is None:
                raise UserError(
                    f"the BatchNorm {'/'.join(module.path)!r} has no axis_name, so that each device"
                    " would normalize by its part of the batch: give it that of the network, in a"
                    " norm of your own axis_name=ops.axis_name"
                )
        return call(*args, **kwargs)

    if axis_name is None or jax.lax.axis_size(axis_name) == 1:
        yield
        return
    with nn.intercept_methods(check):
        yield


def check_training_dtype(model: nn.Module) -> None:
    """Raises `UserError` for a model that computes in float16.

    Gradients below 6e-8 are zero in it, so that training needs a scaled loss, which no step has.
    bfloat16 has the range of float32.
    """
    if jnp.dtype(getattr(model, "dtype", None) or jnp.float32) == jnp.float16:
        raise UserError(
            "the model computes in float16, in which small gradients become zero: use"
            " dtype='bfloat16' or 'float32' for training, float16 for evaluation and export only"
        )


def check_logits(
    model: nn.Module,
    user: str,
    remedy: str = "give loss_fn= and metrics= that take its outputs, such as metrics={}",
) -> None:
    """Raises `UserError` if a model is known to return something else than one array of logits.

    The outputs of a module that is not a `ResNet` are known if it can be traced for images of
    `PROBE_SHAPE`, and those of a head of the user's own if it can be traced alone.

    Args:
      model: accepted by `check_module`.
      user: what takes the logits, for the error.
      remedy: what to do, for the error.
    """
    if isinstance(model, ResNet):
        outputs = "feature maps" if model.out_indices is not None else "pooled features"
        is_logits = model.out_indices is None and model.spec.num_classes > 0
        if is_logits and "head" in model.spec.own_parts:
            outputs, is_logits = _describe_outputs(
                _OwnHead(model.spec), (1, model.spec.stages[-1][-1].channels[-1])
            )
    else:
        outputs, is_logits = _describe_outputs(model, PROBE_SHAPE)
    if not is_logits:
        raise UserError(
            f"{type(model).__name__} returns {outputs}, and {user} takes one array of logits:"
            f" {remedy}"
        )


class _OwnHead(nn.Module):
    """The head of a network alone, for its outputs from pooled features."""

    spec: Spec

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        ops = make_ops(train=train, dtype=x.dtype, dimensions=self.spec.dimensions)
        return resolve("head", self.spec.head)(ops, x, self.spec.num_classes)


def _describe_outputs(model: nn.Module, shape: tuple[int, ...]) -> tuple[str, bool]:
    """Returns the outputs of a module in words, and whether they can be logits."""
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    # Whatever fails for these inputs need not fail for those of a batch.
    with contextlib.suppress(Exception):
        outputs = jax.eval_shape(
            lambda x: model.init_with_output(jax.random.key(0), x, train=False)[0], image
        )
        if not isinstance(outputs, jax.ShapeDtypeStruct):
            return f"a {type(outputs).__name__} of {len(jax.tree.leaves(outputs))} arrays", False
    return "", True


def check_functions(
    model: nn.Module,
    loss_fn: ExampleFn,
    metrics: Mapping[str, ExampleFn],
    keywords: tuple[str, ...] = (),
) -> None:
    """Raises `UserError` for a loss and metrics that cannot be those of a step.

    Args:
      model: accepted by `check_module`.
      loss_fn: function of (outputs, targets).
      metrics: functions of (outputs, labels) by name.
      keywords: names of keyword arguments that the loss is called with.
    """
    _check_function("loss_fn", loss_fn, keywords)
    if not isinstance(metrics, Mapping):
        raise UserError(
            f"metrics is a {type(metrics).__name__}: expected a dict of functions of (outputs,"
            " labels) by name, such as {'top2': f}, or {}"
        )
    for name, metric in metrics.items():
        _check_function(f"metric {name!r}", metric)
        if name in RESERVED:
            raise UserError(f"a metric is called {name!r}, a name that steps use: use another")
    loss = getattr(loss_fn, "func", loss_fn)  # of a partial with options
    if loss in LOSSES.values():
        check_logits(model, loss.__name__)
    elif correct in metrics.values():
        check_logits(model, "the accuracy")


def _check_function(name: str, function: Any, keywords: tuple[str, ...] = ()) -> None:
    """Raises `UserError` unless a function of (outputs, targets) has the keywords.

    Args:
      name: of the argument that it was given as.
      function: the function.
      keywords: names of the keyword arguments that it is called with.
    """
    if not callable(function):
        raise UserError(
            f"{name} is {function!r}: expected a function of (outputs, targets) that returns a"
            " number per example"
        )
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for keyword in () if takes_any else keywords:
        if keyword not in {p.name for p in parameters}:
            raise UserError(
                f"{keyword} is given, but {name} has no argument of that name: leave it out, or"
                f" give a {name} that takes it"
            )
    if not Signature(("outputs", "targets"), keywords).fits(function):
        raise UserError(
            f"{name} is {function_name(function)}{inspect.signature(function)}: expected a function"
            " of (outputs, targets)"
        )


def check_values(name: str, values: Any, examples: int) -> None:
    """Raises `UserError` unless a loss or metric returned one float per example."""
    shape, dtype = getattr(values, "shape", None), getattr(values, "dtype", None)
    if shape != (examples,) or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        is_array = dtype is not None
        given = f"shape {shape} and dtype {dtype}" if is_array else f"a {type(values).__name__}"
        raise UserError(
            f"{name} returned {given}: expected floats of shape {(examples,)}, one per example"
        )
