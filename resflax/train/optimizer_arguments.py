"""What some of optax's optimizers take besides the gradient: `GradientTransformationExtraArgs`."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

# `parameters -> (gradients, mean loss)` for the batch of a step.
Evaluate = Callable[[Any], tuple[Any, Array]]


def optimizer_arguments(update: Callable[..., Any], evaluate: Evaluate, at: Any) -> dict[str, Any]:
    """Returns those of optax's extra arguments that an optimizer's `update` can take.

    "value" is the mean loss (`reduce_on_plateau`, `polyak_sgd`, `momo`), "grad" its gradient before
    any transformation and "value_fn" `params -> loss` (line searches, such as that of `lbfgs`).
    "grad_fn" is `(params, i) -> gradient` for any number i (`sam(opaque_mode=True)`); only an
    `update` that names it gets it, since line searches refuse what they do not use. So SAM is not a
    part of `optax.chain`: it takes other optimizers as its arguments. All are of the step's global
    batch; what `update` does not use is not computed.

    Args:
      update: the optimizer's.
      evaluate: gradient and loss at some parameters.
      at: gradient and loss at the current parameters.
    """
    grads, loss = at
    common = {"value": loss, "grad": grads, "value_fn": _value_fn(evaluate)}
    named = {"grad_fn": lambda params, i: evaluate(params)[0]}
    parameters = inspect.signature(update).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {
        k: v for k, v in (common | named).items() if k in parameters or (takes_any and k in common)
    }


def _value_fn(evaluate: Evaluate) -> Callable[[Any], Array]:
    """Returns `params -> loss`, whose gradient is the mean over the devices, as the loss is."""

    @jax.custom_vjp
    def value_fn(params: Any) -> Array:
        return evaluate(params)[1]

    def forward(params: Any) -> tuple[Array, Any]:
        grads, loss = evaluate(params)
        return loss, grads

    def backward(grads: Any, cotangent: Array) -> tuple[Any]:
        return (jax.tree.map(lambda g: jnp.asarray(cotangent, g.dtype) * g, grads),)

    value_fn.defvjp(forward, backward)
    return value_fn
