"""`materialize(x)`: computed once, where XLA on the CPU would compute it anew for each of its users."""

from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
from jax.interpreters import ad, batching, mlir

from resflax.kernels import backend as roads

Array = jax.Array

keep_p = jax.extend.core.Primitive("resflax_keep")


def materialize(x: Array) -> Array:
    """`x`, written to memory once and then read; so is its gradient.

    For the output of a block, which the next block's branch reads as a matrix and its shortcut as
    an image: XLA would compute it for each of them, and with it the outputs of all blocks before.
    """
    return keep_p.bind(x, road=roads.ROAD)


def materialize_on_cpu(x: Array) -> Array:
    """`x`, as `materialize` is lowered for the CPU.

    XLA's fusion computes a chain of cheap operations anew inside each of its users; it stops only
    at operations that it holds for dear, as a division. Exact: for every number, infinity included,
    the divisor is 1.
    """
    return x / (1 + jnp.minimum(jnp.abs(x), 0))


def _lower_cpu(ctx: Any, x: Any, *, road: str) -> Any:
    if roads.taken(ctx, road, ctx.avals_in[0].dtype) != "cpu":
        return [x]  # the operands of a custom call are written anyway
    return mlir.lower_fun(materialize_on_cpu, multiple_results=False)(ctx, x)


keep_p.def_impl(lambda x, **_: x)
keep_p.def_abstract_eval(lambda x, **_: x)
ad.deflinear2(keep_p, lambda ct, _, **params: [keep_p.bind(ct, **params)])
batching.defvectorized(keep_p)
mlir.register_lowering(keep_p, lambda ctx, x, **_: [x])
mlir.register_lowering(keep_p, _lower_cpu, platform="cpu")
