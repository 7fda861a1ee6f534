"""Convolution: a faster drop-in for `lax.conv_general_dilated` on CPUs.

One primitive computes all three passes of a convolution (`conv_params.py`). Since the passes are
closed under differentiation, forward and reverse mode, `vmap`, `pmap`, `shard_map`, `remat` and
derivatives of any order need no further rules. The implementation is chosen at lowering:

- GPU, TPU and exported programs: `lax.conv_general_dilated`; `members.py` chooses what a mapped
  axis becomes.
- CPU: oneDNN where available (`onednn.py`), else matrix products in pure JAX (`cpu_conv.py`);
  `backend.py` chooses.

Under `jit` over a mesh, `partition.py` splits what XLA on CPUs and GPUs cannot split well itself.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax._src import dispatch
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from resflax.kernels import backend, cpu_conv, onednn, space_to_depth
from resflax.kernels.backend import choose_backend, is_unpartitioned, takes_rules
from resflax.kernels.conv_params import (
    PASS_OPERANDS,
    ConvParams,
    ConvPass,
    channels_last,
    xla_conv,
)
from resflax.kernels.members import member_convolution
from resflax.kernels.partition import gathers_batch, partitioned
from resflax.kernels.varying import vary_alike

conv_p = jax.extend.core.Primitive("resflax_conv")


def conv_general_dilated(
    lhs: Float[Array, "n *space c_in"],
    rhs: Float[Array, "*kernel c_in_per_group c_out"],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    **kwargs: Any,
) -> Float[Array, "n *out_space c_out"]:
    """Convolves as `lax.conv_general_dilated`, with the CPU backends of this package.

    They support floating-point NHWC images and HWIO kernels of the same dtype, strides, explicit
    padding, kernel dilation and groups; volumes `(n, depth, height, width, channels)`; and signals
    `(n, length, channels)`, as images of height 1. Anything else, other dtypes included, is passed
    to `lax.conv_general_dilated`. For Flax:
    `nn.Conv(..., conv_general_dilated=conv_general_dilated)`.
    """
    space = lhs.ndim - 2
    ones = (1,) * space
    supported = (
        _are_supported_arrays(lhs, rhs, feature_group_count)
        and _is_channels_last(dimension_numbers, space)
        and _is_explicit_padding(padding, space)
        and _are_positive(window_strides, space)
        and _are_positive(rhs_dilation or ones, space)
        and tuple(lhs_dilation or ones) == ones
        and all(value is None or value == 1 for value in kwargs.values())
    )
    if not supported:
        return lax.conv_general_dilated(
            lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
            feature_group_count, **kwargs,
        )  # fmt: skip
    if space == 1:
        y = conv_general_dilated(
            lhs[:, None], rhs[None], (1, *window_strides), ((0, 0), *padding), None,
            (1, *(rhs_dilation or ones)), channels_last(2), feature_group_count, **kwargs,
        )  # fmt: skip
        return y[:, 0]
    params = ConvParams(
        image_size=_integers(lhs.shape[1:-1]),
        kernel_size=_integers(rhs.shape[:-2]),
        strides=_integers(window_strides),
        padding=tuple((int(pads[0]), int(pads[1])) for pads in padding),
        dilation=_integers(rhs_dilation or ones),
        groups=feature_group_count,
        precision=jax.config.jax_default_matmul_precision,  # type: ignore[attr-defined]
    )
    return _bind(lhs, rhs, conv_pass="fwd", params=params, backend=backend.default_backend)


def _are_supported_arrays(lhs: Array, rhs: Array, groups: int) -> bool:
    return (
        lhs.ndim == rhs.ndim
        and lhs.ndim in (3, 4, 5)
        and all(isinstance(size, int) for size in lhs.shape[1:])  # not symbolic, for export
        and not any(jax.typeof(a).sharding.mesh.explicit_axes for a in (lhs, rhs))
        and lhs.dtype == rhs.dtype
        and jnp.issubdtype(lhs.dtype, jnp.floating)
        and lhs.shape[-1] == rhs.shape[-2] * groups
        and rhs.shape[-1] % groups == 0
    )


def _is_channels_last(dimension_numbers: Any, space: int) -> bool:
    names = {1: ("NHC", "HIO", "NHC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}
    return dimension_numbers in (channels_last(space), names[space])


def _is_explicit_padding(padding: str | Sequence[tuple[int, int]], space: int) -> bool:
    return (
        not isinstance(padding, str)
        and all(np.shape(pad) == (2,) for pad in padding)
        and len(padding) == space
    )


def _are_positive(values: Sequence[int], space: int) -> bool:
    return len(values) == space and all(value > 0 for value in values)


def _integers(values: Sequence[int]) -> tuple[int, ...]:
    return tuple(map(int, values))


def _bind(lhs: Array, rhs: Array, **static: Any) -> Array:
    return conv_p.bind(*vary_alike(lhs, rhs), **static)


def _abstract_eval(
    lhs: Any, rhs: Any, *, conv_pass: ConvPass, params: ConvParams, backend: str
) -> Any:
    return lhs.update(shape=params.result_shape(conv_pass, lhs.shape, rhs.shape), weak_type=False)


conv_p.def_abstract_eval(_abstract_eval)
# Otherwise the mesh is unknown when the primitive is lowered. JAX has public names neither for this
# nor for the evaluation of a primitive without `jit`.
dispatch.prim_requires_devices_during_lowering.add(conv_p)
conv_p.def_impl(functools.partial(dispatch.apply_primitive, conv_p))


def _transpose(
    argument: int, ct: Array, lhs: Any, rhs: Any, *, conv_pass: ConvPass, **static: Any
) -> Array:
    """Computes the cotangent of operand `argument` by the pass that does not take that operand."""
    names = PASS_OPERANDS[conv_pass]
    (ct_name,) = {"x", "w", "g"} - {*names}
    arrays = {names[0]: lhs, names[1]: rhs, ct_name: ct}
    result_pass = next(
        p for p, operands in PASS_OPERANDS.items() if names[argument] not in operands
    )
    first, second = (arrays[name] for name in PASS_OPERANDS[result_pass])
    return _bind(first, second, conv_pass=result_pass, **static)


ad.defbilinear(conv_p, functools.partial(_transpose, 0), functools.partial(_transpose, 1))


def _batch(
    args: tuple[Array, Array],
    axes: tuple[Any, Any],
    *,
    conv_pass: ConvPass,
    params: ConvParams,
    backend: str,
) -> tuple[Array, int]:
    """Folds a mapped axis into the batch or the channels where the other operand is shared."""
    bind = functools.partial(conv_p.bind, conv_pass=conv_pass, params=params, backend=backend)
    (lhs, rhs), (lhs_axis, rhs_axis) = args, axes
    is_first_axis = lhs.ndim - (lhs_axis is not None) == params.rank
    if is_first_axis and rhs_axis is None and conv_pass in ("fwd", "dgrad"):
        lhs = jnp.moveaxis(lhs, lhs_axis, 0)
        out = bind(lhs.reshape(-1, *lhs.shape[2:]), rhs)
        return out.reshape(*lhs.shape[:2], *out.shape[1:]), 0
    if is_first_axis and lhs_axis is None and conv_pass in ("fwd", "wgrad") and params.groups == 1:
        rhs = jnp.moveaxis(rhs, rhs_axis, -2)
        out = bind(lhs, rhs.reshape(*rhs.shape[:-2], -1))
        return out.reshape(*out.shape[:-1], *rhs.shape[-2:]), out.ndim - 1
    size = next(a.shape[axis] for a, axis in zip(args, axes, strict=True) if axis is not None)
    lhs, rhs = (
        jnp.broadcast_to(a, (size, *a.shape)) if axis is None else jnp.moveaxis(a, axis, 0)
        for a, axis in zip(args, axes, strict=True)
    )
    if is_first_axis:
        return bind(lhs, rhs), 0
    out = bind(*(a.reshape(-1, *a.shape[2:]) for a in (lhs, rhs)))
    return out.reshape(*lhs.shape[:2], *out.shape[1:]), 0


batching.primitive_batchers[conv_p] = _batch


def _lower(
    ctx: Any,
    lhs: Any,
    rhs: Any,
    *,
    conv_pass: ConvPass,
    params: ConvParams,
    backend: str,
    run: Any = xla_conv,
) -> Any:
    del backend
    rule = mlir.lower_fun(lambda a, b: run(conv_pass, a, b, params), multiple_results=False)
    return rule(ctx, lhs, rhs)


def _lower_partitioned(ctx: Any, lhs: Any, rhs: Any, *, name: str, **static: Any) -> Any:
    """Lowers to a pass that XLA partitions by this package's rule.

    Each device's part is lowered again, as for a single device.
    """
    conv_pass, params = static["conv_pass"], static["params"]
    run = functools.partial(conv_p.bind, **static)
    function = partitioned(run, conv_pass, ctx.avals_in[0].ndim, params, name)
    return mlir.lower_fun(function, multiple_results=False)(ctx, lhs, rhs)


def _lower_cpu(ctx: Any, lhs: Any, rhs: Any, **static: Any) -> Any:
    if not ctx.avals_out[0].size:
        return _lower(ctx, lhs, rhs, **static)
    lhs_aval, params = ctx.avals_in[0], static["params"]
    # oneDNN does not support negative padding.
    onednn_fits = not params.crops
    name = choose_backend(ctx, static["backend"], lhs_aval.dtype, onednn_fits=onednn_fits)
    needs_rule = name == "onednn" or gathers_batch(lhs_aval.ndim, params)
    if needs_rule and takes_rules(ctx):
        return _lower_partitioned(ctx, lhs, rhs, name=name, **static)
    pure_jax = functools.partial(cpu_conv.convolve, chunked=is_unpartitioned(ctx))
    xla = _choose_xla("cpu", ctx, cpu_conv.xla_convolve)
    run = {"xla": xla, "cpu": pure_jax, "onednn": _run_onednn}[name]
    return _lower(ctx, lhs, rhs, run=run, **static)


def _lower_gpu(ctx: Any, lhs: Any, rhs: Any, **static: Any) -> Any:
    if takes_rules(ctx) and gathers_batch(ctx.avals_in[0].ndim, static["params"]):
        return _lower_partitioned(ctx, lhs, rhs, name="xla", **static)
    return _lower(ctx, lhs, rhs, run=_choose_xla("gpu", ctx, space_to_depth.convolve), **static)


def _choose_xla(platform: str, ctx: Any, convolve: Any) -> Any:
    """Returns how XLA computes a pass: a mapped axis by a loop or by one grouped convolution."""
    in_export = ctx.module_context.lowering_parameters.for_export
    if in_export or not is_unpartitioned(ctx) or member_convolution(platform) == "grouped":
        return xla_conv

    def loop(conv_pass: ConvPass, lhs: Array, rhs: Array, params: ConvParams) -> Array:
        if lhs.ndim == params.rank:
            return convolve(conv_pass, lhs, rhs, params)
        return lax.map(lambda pair: loop(conv_pass, pair[0], pair[1], params), (lhs, rhs))

    return loop


def _run_onednn(conv_pass: ConvPass, lhs: Array, rhs: Array, params: ConvParams) -> Array:
    return onednn.convolve(
        conv_pass,
        lhs,
        rhs,
        params.result_shape(conv_pass, lhs.shape, rhs.shape),
        strides=params.strides,
        padding=params.padding,
        dilation=params.dilation,
        groups=params.groups,
    )


mlir.register_lowering(conv_p, _lower)
mlir.register_lowering(conv_p, _lower_cpu, platform="cpu")
mlir.register_lowering(conv_p, _lower_gpu, platform="gpu")
