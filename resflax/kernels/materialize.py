"""Stops XLA:CPU from recomputing an array in every one of its consumers."""

from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from resflax.kernels import backend
from resflax.kernels.backend import choose_backend

materialize_p = jax.extend.core.Primitive("resflax_materialize")


def materialize(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns `x`, written to memory once on the CPU; the same holds for its gradient.

    Use it on the output of a residual block. The next block's branch reads that output as a matrix
    and its shortcut reads it as an image, so XLA:CPU would compute it for each of them, and with it
    the outputs of all earlier blocks. On other platforms, and for backends other than "cpu", it
    does nothing.
    """
    return materialize_p.bind(x, backend=backend.default_backend)


def materialize_on_cpu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns `x`, computed by an operation that XLA:CPU does not duplicate.

    XLA's fusion copies a chain of cheap operations into each consumer; it stops only at operations
    that it considers expensive, such as a division. Exact: the divisor is 1 for every number,
    infinities included.
    """
    return x / (1 + jnp.minimum(jnp.abs(x), 0))


def _lower_cpu(ctx: Any, x: Any, *, backend: str) -> Any:
    if choose_backend(ctx, backend, ctx.avals_in[0].dtype) != "cpu":
        return [x]  # XLA always materializes the operands of a custom call, as oneDNN's
    return mlir.lower_fun(materialize_on_cpu, multiple_results=False)(ctx, x)


materialize_p.def_impl(lambda x, **_: x)
materialize_p.def_abstract_eval(lambda x, **_: x)
ad.deflinear2(materialize_p, lambda ct, _, **params: [materialize_p.bind(ct, **params)])
batching.defvectorized(materialize_p)
mlir.register_lowering(materialize_p, lambda ctx, x, **_: [x])
mlir.register_lowering(materialize_p, _lower_cpu, platform="cpu")
