"""How a convolution is split over the devices of a mesh under `jit`.

XLA's partitioner gathers the whole batch for the kernel gradient of a grouped convolution, and for
the grouped convolution that the members of an ensemble become
(https://github.com/openxla/xla/issues/47945). It can split neither a custom call, as oneDNN's, nor
a loop. For these, `custom_partitioning` gives XLA a rule: the batch and mapped axes may be split,
every other axis is whole on each device. Each device then computes its part of a pass as it would
on its own, and the parts of a kernel gradient are summed.
"""

import functools
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from resflax.kernels.conv_params import PASS_OPERANDS, ConvParams, ConvPass
from resflax.kernels.members import default_member_convolution


def _axes(dimensions: int) -> dict[str, list[str]]:
    """Returns names of the axes of x, w and g. "n" is the batch; no other name occurs twice."""
    x, w, g = ([f"{array}{i}" for i in range(dimensions)] for array in "xwg")
    return {"x": ["n", *x, "c"], "w": [*w, "i", "o"], "g": ["n", *g, "f"]}


def gathers_batch(ndim: int, params: ConvParams) -> bool:
    """Returns whether XLA itself gathers the batch for a pass over operands with `ndim` axes."""
    return ndim > params.rank or params.groups > 1


def partitioned(
    run: Callable[[Array, Array], Array],
    conv_pass: ConvPass,
    ndim: int,
    params: ConvParams,
    backend: str,
) -> Callable[[Array, Array], Array]:
    """Returns `run`, which computes a pass, with a rule for XLA's partitioner.

    Args:
      run: computes the pass of a whole batch, or of a device's part.
      conv_pass: "fwd", "dgrad" or "wgrad".
      ndim: number of axes of both operands.
      params: parameters of the convolution.
      backend: what else the result of `run` depends on, for the compilation cache.
    """
    mapped, own_axes = ndim - params.rank, _axes(params.rank - 2)
    names = *PASS_OPERANDS[conv_pass], *({*own_axes} - {*PASS_OPERANDS[conv_pass]})
    factors = [[*(f"m{i}" for i in range(mapped)), *own_axes[name]] for name in names]
    reduced = ("n",) if conv_pass == "wgrad" else ()
    # Axes that no device may split.
    whole = dict.fromkeys(axis for axes in factors for axis in axes[mapped:] if axis != "n")

    def partition(mesh: Any, args: Any, result: Any) -> Any:
        split: dict[str, tuple[str, ...]] = {}
        for axes, array in zip(factors, (*args, result), strict=True):
            for axis, size, by in zip(axes, array.shape, array.sharding.spec, strict=True):
                by = (by,) if isinstance(by, str) else tuple(by or ())
                is_free = not {*by} & {name for names in split.values() for name in names}
                divides = size % math.prod(mesh.shape[name] for name in by) == 0
                if by and axis not in whole and is_free and divides:
                    split[axis] = by
        shardings = [
            NamedSharding(mesh, PartitionSpec(*(split.get(axis) for axis in axes)))
            for axes in factors
        ]

        def run_part(lhs: Array, rhs: Array) -> Array:
            out = run(lhs, rhs)
            return lax.psum(out, split["n"]) if reduced and "n" in split else out

        return mesh, run_part, shardings[2], tuple(shardings[:2])

    function = custom_partitioning(lambda lhs, rhs: run(lhs, rhs))
    function.def_partition(
        partition,
        sharding_rule="{}, {} -> {}".format(*map(" ".join, factors)),
        reduction_factors=reduced,
        need_replication_factors=tuple(whole),
    )

    # JAX's compilation cache sees the name of a function, but not what a custom call computes.
    def named(lhs: Array, rhs: Array) -> Array:
        result: Array = function(lhs, rhs)
        return result

    named.__name__ = f"conv_{_digest(conv_pass, params, backend, default_member_convolution)}"
    return jax.jit(named)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(repr((_sources(), *parts)).encode()).hexdigest()[:16]


@functools.cache
def _sources() -> str:
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
