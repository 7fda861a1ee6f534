"""Strided convolutions of few channels, as convolutions of stride 1 over blocks of pixels.

A GPU computes convolutions with at least eight channels at a time, of which the stem of an ImageNet
network uses three. With stride s, blocks of s x s pixels become pixels with s^2 times the channels,
and the kernel is extended by zeros and rearranged alike: the sums are of the same products, and of
some zeros. The rearrangement is that of Ridnik et al. 2020 (TResNet, arXiv:2003.13630).
"""

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from resflax.kernels.conv_params import ConvParams, ConvPass, Shape, run_pass, xla_conv

# Channels of a block: with more, the convolution itself has enough of them. They are padded with
# zeros: on an H100, forward and weight gradient of ResNet-50's stem took 1.21 ms with 16 channels,
# 1.59 ms with 12, and 3.08 ms as a convolution of stride 2 (256 images of 224 pixels in bfloat16).
MAX_CHANNELS = 16
CHANNEL_MULTIPLE = 8


def convolve(
    conv_pass: ConvPass,
    lhs: Float[Array, "_ _ _ _"],
    rhs: Float[Array, "_ _ _ _"],
    params: ConvParams,
) -> Float[Array, "_ _ _ _"]:
    """Computes a pass as `xla_conv` does, over blocks of pixels where these have few channels."""
    channels = rhs.shape[-2] if conv_pass == "dgrad" else lhs.shape[-1]  # of the image
    if not _has_small_blocks(channels, params):
        return xla_conv(conv_pass, lhs, rhs, params)
    return run_pass(_forward, conv_pass, lhs, rhs, params)


def _has_small_blocks(channels: int, params: ConvParams) -> bool:
    block = math.prod(params.strides)
    return (
        params.rank == 4
        and block > 1
        and block * channels <= MAX_CHANNELS
        and params.groups == 1
        and params.dilation == (1, 1)
    )


def _forward(
    x: Float[Array, "n h w c_in"],
    w: Float[Array, "kernel_h kernel_w c_in c_out"],
    params: ConvParams,
) -> Float[Array, "n h_out w_out c_out"]:
    image_pads, kernel_pads = [], []
    for size, out, kernel, stride, (low, _) in zip(
        params.image_size,
        params.output_size,
        params.kernel_size,
        params.strides,
        params.padding,
        strict=True,
    ):
        extended = -(-kernel // stride) * stride
        kernel_pads.append((0, extended - kernel, 0))
        image_pads.append((low, (out - 1) * stride + extended - size - low, 0))
    zero, none = jnp.zeros((), x.dtype), (0, 0, 0)
    x = _blocks(lax.pad(x, zero, (none, *image_pads, none)), 1, params.strides)
    w = _blocks(lax.pad(w, zero, (*kernel_pads, none, none)), 0, params.strides)
    return lax.conv_general_dilated(
        x,
        w,
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=params.precision,
    )


def _blocks(x: Array, axis: int, strides: Shape) -> Array:
    """Moves the pixels of each block into the channels, and pads these with zeros.

    Height, width and channels are the axes `axis`, `axis + 1` and `axis + 2` of `x`.
    """
    (height, width), (rows, columns, channels) = strides, x.shape[axis : axis + 3]
    before, after = x.shape[:axis], x.shape[axis + 3 :]
    rows, columns = rows // height, columns // width
    x = x.reshape(*before, rows, height, columns, width, channels, *after)
    x = jnp.swapaxes(x, axis + 1, axis + 2)
    channels *= height * width
    x = x.reshape(*before, rows, columns, channels, *after)
    pads = [(0, -channels % CHANNEL_MULTIPLE if i == axis + 2 else 0, 0) for i in range(x.ndim)]
    return lax.pad(x, jnp.zeros((), x.dtype), pads)
