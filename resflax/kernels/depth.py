"""Passes of three-dimensional convolutions as sums of two-dimensional ones.

For each position k of the kernel along the depth, the slices of the volume under it are images of a
batch that is larger by the depth of the output, and are convolved with the kernel's slice k.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from resflax.kernels.conv_params import ConvParams, ConvPass

# `(conv_pass, lhs, rhs, params) -> result` of images.
Convolve = Callable[[ConvPass, Array, Array, ConvParams], Array]


def convolve_slices(
    convolve: Convolve,
    conv_pass: ConvPass,
    lhs: Float[Array, "_ _ _ _ _"],
    rhs: Float[Array, "_ _ _ _ _"],
    params: ConvParams,
) -> Float[Array, "_ _ _ _ _"]:
    """Computes a pass of volumes by `convolve`, which computes those of images."""
    low, high = params.padding[0]
    depth, out_depth = params.image_size[0], params.output_size[0]
    stride, dilation = params.strides[0], params.dilation[0]
    planar = ConvParams(
        params.image_size[1:],
        params.kernel_size[1:],
        params.strides[1:],
        params.padding[1:],
        params.dilation[1:],
        params.groups,
        params.precision,
    )
    padded_depth = depth + low + high

    def run(lhs: Array, rhs: Array) -> Array:
        return convolve(conv_pass, lhs, rhs, planar)

    def slices_under(k: int) -> Array:
        start = k * dilation
        part = lax.slice_in_dim(x, start, start + stride * (out_depth - 1) + 1, stride, axis=1)
        return part.reshape(-1, *part.shape[2:])

    if conv_pass == "dgrad":
        g, total = lhs.reshape(-1, *lhs.shape[2:]), jnp.zeros((), lhs.dtype)
        for k in range(params.kernel_size[0]):
            part = run(g, rhs[k])
            part = part.reshape(len(lhs), out_depth, *part.shape[1:])
            before = k * dilation
            after = padded_depth - before - (stride * (out_depth - 1) + 1)
            pads = [(0, 0, 0), (before - low, after - high, stride - 1), *[(0, 0, 0)] * 3]
            total = total + lax.pad(part, jnp.zeros((), part.dtype), pads)
        return total
    x = lax.pad(lhs, jnp.zeros((), lhs.dtype), [(0, 0, 0), (low, high, 0), *[(0, 0, 0)] * 3])
    if conv_pass == "wgrad":
        g = rhs.reshape(-1, *rhs.shape[2:])
        return jnp.stack([run(slices_under(k), g) for k in range(params.kernel_size[0])])
    y = sum(run(slices_under(k), rhs[k]) for k in range(params.kernel_size[0]))
    return y.reshape(len(lhs), out_depth, *y.shape[1:])  # type: ignore[union-attr]
