"""Selection of the CPU backend for convolutions.

- "xla": XLA's own convolutions. GPU, TPU and exported programs always use these.
- "cpu": matrix products in pure JAX (`cpu_conv.py`).
- "onednn": oneDNN (`onednn.py`); falls back to "cpu" for whatever it cannot run.
- "auto": the same as "onednn".

The environment variable RESFLAX_CONV sets the default for a process; `conv_backend` overrides it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp

from resflax.errors import unknown
from resflax.kernels import onednn

BACKENDS = ("auto", "xla", "cpu", "onednn")
default_backend = os.environ.get("RESFLAX_CONV") or "auto"
if default_backend not in BACKENDS:
    raise unknown("RESFLAX_CONV", default_backend, BACKENDS)

_LABELS = {"xla": "XLA", "cpu": "pure JAX", "onednn": "oneDNN"}


@contextmanager
def conv_backend(name: str) -> Iterator[None]:
    """Sets the CPU backend of everything traced inside the context.

    Under "xla", cost analysis counts the multiply-adds of a convolution:

    >>> from resflax.kernels import conv_general_dilated
    >>> def conv(x, w):
    ...     padding, layout = ((0, 0), (0, 0)), ("NHWC", "HWIO", "NHWC")
    ...     return conv_general_dilated(x, w, (1, 1), padding, dimension_numbers=layout)
    >>> x, w = jnp.ones((1, 8, 8, 3)), jnp.ones((1, 1, 3, 16))
    >>> with conv_backend("xla"):
    ...     jax.jit(conv).lower(x, w).cost_analysis()["flops"] == 2 * 8 * 8 * 3 * 16
    True

    Raises:
      UserError: if `name` is not one of `BACKENDS`.
    """
    global default_backend
    if name not in BACKENDS:
        raise unknown("convolution backend", name, BACKENDS)
    default_backend, previous = name, default_backend
    try:
        yield
    finally:
        default_backend = previous


def describe_backend(dtype: Any = jnp.float32) -> str:
    """Returns one line that names the backend of convolutions on JAX's default platform.

    Where oneDNN is requested and not used, the line says why and how to get it. The first call may
    compile oneDNN's bindings, and initializes JAX's platforms.

    Args:
      dtype: dtype of images and kernels, or its name.

    >>> with conv_backend("cpu"):
    ...     describe_backend()
    'convolutions: pure JAX'
    """
    if jax.default_backend() != "cpu":
        return "convolutions: XLA"
    dtype = jnp.dtype(dtype)
    name = select(dtype)
    line = f"convolutions: {_LABELS[name]}"
    if name == "onednn" or default_backend in ("xla", "cpu"):
        return line
    reason = onednn.unavailable_reason()
    return f"{line} ({reason or f'oneDNN does not support {dtype} on this CPU'})"


def choose_backend(ctx: Any, requested: str, dtype: Any, *, onednn_fits: bool = True) -> str:
    """Returns the backend for an operation that is lowered for the CPU.

    Args:
      ctx: the `LoweringRuleContext`.
      requested: one of `BACKENDS`.
      dtype: dtype of the operands.
      onednn_fits: whether oneDNN supports the operation itself.

    Returns:
      "xla", "cpu" or "onednn".
    """
    if ctx.module_context.lowering_parameters.for_export:
        return "xla"
    reaches_onednn = is_unpartitioned(ctx) or takes_rules(ctx)
    return select(dtype, requested, onednn_fits=onednn_fits and reaches_onednn)


def select(dtype: Any, requested: str | None = None, *, onednn_fits: bool = True) -> str:
    """Returns the backend of convolutions on the CPU: "xla", "cpu" or "onednn".

    Args:
      dtype: dtype of the operands.
      requested: one of `BACKENDS`; None for the current default.
      onednn_fits: whether oneDNN can run the operation where it is lowered.
    """
    requested = requested or default_backend
    if requested == "xla":
        return "xla"
    if requested != "cpu" and onednn_fits and onednn.supports(dtype):
        return "onednn"
    return "cpu" if dtype in (jnp.float32, jnp.bfloat16) else "xla"


def is_unpartitioned(ctx: Any) -> bool:
    """Returns whether every mesh axis is manual or of size 1, so that XLA partitions nothing.

    Otherwise XLA can partition matrix products, but neither a custom call nor a loop over chunks of
    the batch, unless it has a rule for them (`partition.py`).
    """
    context = ctx.module_context.axis_context
    if hasattr(context, "manual_axes"):
        return all(n == 1 or a in context.manual_axes for a, n in context.mesh.shape.items())
    return getattr(context, "num_devices", 1) == 1


def takes_rules(ctx: Any) -> bool:
    """Returns whether XLA partitions the program and takes rules of `partition.py` for it.

    It does under `jit` over a mesh; not where only some axes of the mesh are manual, for exported
    programs, and with the partitioner that preceded Shardy.
    """
    return (
        not is_unpartitioned(ctx)
        and getattr(ctx.module_context.axis_context, "abstract_mesh", None) is not None
        and not ctx.module_context.lowering_parameters.for_export
        and bool(jax.config.jax_use_shardy_partitioner)  # type: ignore[attr-defined]
    )
