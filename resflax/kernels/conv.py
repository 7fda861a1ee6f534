"""Two-dimensional convolution, as fast as each platform has it; stands in for JAX's own.

One primitive carries the three readings of the form (`conv_form.py`), so that forward and reverse
mode, `vmap`, `pmap`, `shard_map`, `remat` and derivatives of any order need nothing further. How a
reading is computed is decided only when it is lowered, for the platform that it is lowered for:

- GPU, TPU and everything that is exported: `lax.conv_general_dilated`, as XLA has it.
- CPU: oneDNN, where it is installed (`onednn.py`), else matrix products (`cpu_conv.py`);
  `road.py` decides.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.interpreters import ad, batching, mlir

from resflax.kernels import backend as roads
from resflax.kernels import cpu_conv, onednn
from resflax.kernels.conv_params import OPERANDS, ConvForm, Pair, Reading, plain

Array = jax.Array

conv_p = jax.extend.core.Primitive("resflax_conv")


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    **kwargs: Any,
) -> Array:
    """`lax.conv_general_dilated`, on this library's road where that has one.

    It has for images `(n, height, width, channels)` of floats, kernels `(height, width, in, out)`
    of the same dtype, strides, explicit padding, kernel dilation and groups; whatever else is asked
    for goes to JAX's own. `nn.Conv(..., conv_general_dilated=conv_general_dilated)` takes it.
    """
    nhwc = lax.conv_dimension_numbers((0,) * 4, (0,) * 4, ("NHWC", "HWIO", "NHWC"))
    ours = (
        lhs.ndim == rhs.ndim == 4
        and dimension_numbers in (nhwc, ("NHWC", "HWIO", "NHWC"))
        and not isinstance(padding, str)
        and all(np.shape(pad) == (2,) for pad in padding)
        and len(padding) == 2
        and _are_steps(window_strides)
        and _are_steps(rhs_dilation or (1, 1))
        and tuple(lhs_dilation or (1, 1)) == (1, 1)
        and not any(jax.typeof(a).sharding.mesh.explicit_axes for a in (lhs, rhs))
        and lhs.dtype == rhs.dtype
        and jnp.issubdtype(lhs.dtype, jnp.floating)
        and lhs.shape[-1] == rhs.shape[-2] * feature_group_count
        and rhs.shape[-1] % feature_group_count == 0
        and all(value is None or value == 1 for value in kwargs.values())
    )
    if not ours:
        return lax.conv_general_dilated(
            lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
            feature_group_count, **kwargs,
        )  # fmt: skip
    form = ConvForm(
        image=_pair(lhs.shape[1:3]),
        window=_pair(rhs.shape[:2]),
        strides=_pair(window_strides),
        padding=(_pair(padding[0]), _pair(padding[1])),  # type: ignore[arg-type]
        dilation=_pair(rhs_dilation or (1, 1)),
        groups=feature_group_count,
        precision=jax.config.jax_default_matmul_precision,  # type: ignore[attr-defined]
    )
    return _bind(lhs, rhs, reading="y", form=form, road=roads.ROAD)


def _are_steps(values: Sequence[int]) -> bool:
    return len(values) == 2 and all(value > 0 for value in values)


def _pair(values: Sequence[int]) -> Pair:
    down, across = values
    return int(down), int(across)


def _bind(lhs: Array, rhs: Array, **params: Any) -> Array:
    # Under `shard_map` both must vary over the same mesh axes.
    axes = _varying(lhs) | _varying(rhs)
    lhs, rhs = (
        lax.pcast(a, tuple(missing), to="varying") if (missing := axes - _varying(a)) else a
        for a in (lhs, rhs)
    )
    return conv_p.bind(lhs, rhs, **params)


def _varying(x: Array) -> frozenset[Any]:
    aval: Any = jax.typeof(x)
    manual = getattr(aval, "manual_axis_type", None)
    return frozenset(manual.varying if manual is not None else getattr(aval, "vma", ()))


def _result(lhs: Any, rhs: Any, *, reading: Reading, form: ConvForm, road: str) -> Any:
    return lhs.update(shape=form.shape(reading, lhs.shape, rhs.shape), weak_type=False)


conv_p.def_abstract_eval(_result)


@functools.cache
def _compiled(**params: Any) -> Any:
    return jax.jit(functools.partial(conv_p.bind, **params))


def _run_now(lhs: Array, rhs: Array, **params: Any) -> Array:
    return _compiled(**params)(lhs, rhs)


conv_p.def_impl(_run_now)


def _transpose(
    wanted: int, ct: Array, lhs: Any, rhs: Any, *, reading: Reading, form: ConvForm, road: str
) -> Array:
    """The form's gradient for the operand that is `wanted`: the reading that leaves it out."""
    takes = OPERANDS[reading]
    known = {takes[0]: lhs, takes[1]: rhs, "g" if reading == "y" else reading: ct}
    name: Any = "y" if takes[wanted] == "g" else takes[wanted]
    left, right = (known[operand] for operand in OPERANDS[name])
    return _bind(left, right, reading=name, form=form, road=road)


ad.defbilinear(conv_p, functools.partial(_transpose, 0), functools.partial(_transpose, 1))


def _batch(
    args: tuple[Array, Array], axes: tuple[Any, Any], *, reading: Reading, form: ConvForm, road: str
) -> tuple[Array, int]:
    """Folds a mapped axis into the batch or the channels where one operand is shared."""
    bind = functools.partial(conv_p.bind, reading=reading, form=form, road=road)
    (lhs, rhs), (lhs_axis, rhs_axis) = args, axes
    single = lhs.ndim - (lhs_axis is not None) == 4
    if single and rhs_axis is None and reading in ("y", "x"):
        lhs = jnp.moveaxis(lhs, lhs_axis, 0)
        out = bind(lhs.reshape(-1, *lhs.shape[2:]), rhs)
        return out.reshape(*lhs.shape[:2], *out.shape[1:]), 0
    if single and lhs_axis is None and reading in ("y", "w") and form.groups == 1:
        rhs = jnp.moveaxis(rhs, rhs_axis, -2)
        out = bind(lhs, rhs.reshape(*rhs.shape[:-2], -1))
        return out.reshape(*out.shape[:-1], *rhs.shape[-2:]), out.ndim - 1
    size = next(a.shape[axis] for a, axis in zip(args, axes, strict=True) if axis is not None)
    lhs, rhs = (
        jnp.broadcast_to(a, (size, *a.shape)) if axis is None else jnp.moveaxis(a, axis, 0)
        for a, axis in zip(args, axes, strict=True)
    )
    if single:
        return bind(lhs, rhs), 0
    out = bind(*(a.reshape(-1, *a.shape[2:]) for a in (lhs, rhs)))
    return out.reshape(*lhs.shape[:2], *out.shape[1:]), 0


batching.primitive_batchers[conv_p] = _batch


def _lower_plain(
    ctx: Any, lhs: Any, rhs: Any, *, reading: Reading, form: ConvForm, road: str, run: Any = plain
) -> Any:
    del road
    rule = mlir.lower_fun(lambda lhs, rhs: run(reading, lhs, rhs, form), multiple_results=False)
    return rule(ctx, lhs, rhs)


def _lower_cpu(ctx: Any, lhs: Any, rhs: Any, *, form: ConvForm, road: str, **params: Any) -> Any:
    run: Any = plain
    if ctx.avals_out[0].size:
        # oneDNN takes no padding that crops.
        taken = roads.taken(ctx, road, ctx.avals_in[0].dtype, onednn_fits=not form.crops)
        by_products = functools.partial(cpu_conv.convolve, chunked=roads.is_whole(ctx))
        run = {"plain": plain, "cpu": by_products, "onednn": _by_onednn}[taken]
    return _lower_plain(ctx, lhs, rhs, form=form, road=road, run=run, **params)


def _by_onednn(reading: Reading, lhs: Array, rhs: Array, form: ConvForm) -> Array:
    return onednn.convolve(
        reading,
        lhs,
        rhs,
        form.shape(reading, lhs.shape, rhs.shape),
        strides=form.strides,
        padding=form.padding,
        dilation=form.dilation,
        groups=form.groups,
    )


mlir.register_lowering(conv_p, _lower_plain)
mlir.register_lowering(conv_p, _lower_cpu, platform="cpu")
