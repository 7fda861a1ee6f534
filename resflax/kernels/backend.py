"""Which road the CPU takes: XLA's own, matrix products in pure JAX, or oneDNN.

The environment variable RESFLAX_CONV=plain, cpu or onednn forces one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax.numpy as jnp

from resflax.errors import unknown
from resflax.kernels import onednn

ROADS = ("auto", "plain", "cpu", "onednn")
ROAD = os.environ.get("RESFLAX_CONV") or "auto"
if ROAD not in ROADS:
    raise unknown("RESFLAX_CONV", ROAD, ROADS)


@contextmanager
def conv_backend(road: str) -> Iterator[None]:
    """What is traced inside takes that road; "plain" leaves convolutions that XLA can count."""
    global ROAD
    ROAD, saved = road, ROAD
    try:
        yield
    finally:
        ROAD = saved


def taken(ctx: Any, wanted: str, dtype: Any, *, onednn_fits: bool = True) -> str:
    """The road of what is lowered for the CPU in this context: "plain", "cpu" or "onednn"."""
    if wanted == "plain" or ctx.module_context.lowering_parameters.for_export:
        return "plain"
    if wanted != "cpu" and onednn_fits and is_whole(ctx) and onednn.supports(dtype):
        return "onednn"
    return "cpu" if dtype in (jnp.float32, jnp.bfloat16) else "plain"


def is_whole(ctx: Any) -> bool:
    """Whether XLA is left no mesh axis to split over.

    Under `jit` over a mesh it splits matrix products by itself, but neither a custom call nor a
    loop over chunks of the batch.
    """
    context = ctx.module_context.axis_context
    if hasattr(context, "manual_axes"):
        return all(n == 1 or a in context.manual_axes for a, n in context.mesh.shape.items())
    return getattr(context, "num_devices", 1) == 1
