"""Mesh axes over which arrays vary inside `jax.shard_map`.

With its default `check_vma=True`, `jax.shard_map` tracks in the type of each array the mesh axes
over which the devices' values differ. JAX sums the gradient for an array that does not vary over
the devices, and some operations need operands that vary over the same axes. Elsewhere (`pmap`,
`check_vma=False`, no mesh), no array has such axes, and these functions return what they are given.
"""

from typing import Any

import jax
from jax import lax
from jaxtyping import Array


def varying_axes(*arrays: Array) -> frozenset[Any]:
    """Returns the mesh axes over which at least one of the arrays varies."""
    return frozenset().union(*map(_axes_of, arrays))


def _axes_of(x: Array) -> frozenset[Any]:
    aval: Any = jax.typeof(x)
    manual = getattr(aval, "manual_axis_type", None)
    return frozenset(manual.varying if manual is not None else getattr(aval, "vma", ()))


def vary_over(axes: frozenset[Any], x: Array) -> Array:
    """Returns `x` as an array that varies over `axes`, and over those that it varies over already.

    Its gradient then varies as well: each device has that of its own part of the loss, and JAX
    does not sum them.
    """
    missing = tuple(sorted(axes - varying_axes(x)))
    return lax.pcast(x, missing, to="varying") if missing else x


def vary_alike(*arrays: Array) -> tuple[Array, ...]:
    """Returns the arrays as ones that all vary over the same axes."""
    axes = varying_axes(*arrays)
    return tuple(vary_over(axes, x) for x in arrays)
