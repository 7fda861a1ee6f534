"""Convolution passes as one matrix product over patches of the image (im2col).

A patch is what the kernel covers at one output pixel. Patches are `kernel height * kernel width`
times as large as the image, so this pays only for small feature maps, whose patches stay in the
CPU's cache. Under `vmap` the products of all members become one batched product.

Chellapilla et al. 2006, "High performance convolutional neural networks for document processing".
"""

from collections.abc import Iterator

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from resflax.kernels.conv_params import ConvParams, Shape
from resflax.kernels.winograd import channel_outer_product


def patch_bytes(x: Shape, params: ConvParams) -> int:
    """Returns the size of all patches of an image of shape `(n, h, w, c)`, in float32.

    >>> patch_bytes((64, 8, 8, 1), ConvParams((8, 8), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1))
    147456
    """
    pixels = x[0] * params.output_size[0] * params.output_size[1]
    return 4 * pixels * params.kernel_size[0] * params.kernel_size[1] * x[3]


def convolve(
    x: Float[Array, "n h w c_in"],
    w: Float[Array, "kernel_h kernel_w c_in c_out"],
    params: ConvParams,
) -> Float[Array, "n h_out w_out c_out"]:
    """Convolves `x` with `w`; without groups, and padding must not be negative."""
    matrix = w.reshape(-1, w.shape[3])
    return lax.dot_general(_patches(x, params), matrix, (((3,), (0,)), ((), ())))


def image_gradient(
    g: Float[Array, "n h_out w_out c_out"],
    w: Float[Array, "kernel_h kernel_w c_in c_out"],
    params: ConvParams,
) -> Float[Array, "n h w c_in"]:
    """Returns the gradient for `x`, given the gradient `g` for `convolve(x, w, params)`."""
    patches = lax.dot_general(g, w.reshape(-1, w.shape[3]), (((3,), (1,)), ((), ())))
    channels = w.shape[2]
    padded_size = [n + sum(pad) for n, pad in zip(params.image_size, params.padding, strict=True)]
    x = jnp.zeros((), g.dtype)
    for k, (i, j) in enumerate(_kernel_positions(params)):
        pads = [
            (d * start, size - (s * (out - 1) + 1) - d * start, s - 1)
            for start, size, out, s, d in zip(
                (i, j),
                padded_size,
                params.output_size,
                params.strides,
                params.dilation,
                strict=True,
            )
        ]
        part = lax.slice_in_dim(patches, k * channels, (k + 1) * channels, axis=3)
        x += lax.pad(part, jnp.zeros((), g.dtype), ((0, 0, 0), *pads, (0, 0, 0)))
    (top, _), (left, _) = params.padding
    height, width = params.image_size
    return x[:, top : top + height, left : left + width]


def kernel_gradient(
    x: Float[Array, "n h w c_in"], g: Float[Array, "n h_out w_out c_out"], params: ConvParams
) -> Float[Array, "kernel_h kernel_w c_in c_out"]:
    """Returns the gradient for `w`, given the gradient `g` for `convolve(x, w, params)`."""
    matrix = channel_outer_product(_patches(x, params), g)
    return matrix.reshape(*params.kernel_size, x.shape[3], g.shape[3])


def _patches(x: Array, params: ConvParams) -> Array:
    """Returns the patches `(n, h_out, w_out, kernel height * kernel width * channels)`."""
    x = jnp.pad(x, ((0, 0), *params.padding, (0, 0)))
    return jnp.concatenate([pixels_under(x, p, params) for p in _kernel_positions(params)], 3)


def pixels_under(
    padded: Float[Array, "n h w c"], position: tuple[int, int], params: ConvParams
) -> Float[Array, "n h_out w_out c"]:
    """Returns the pixels of a padded image that one position of the kernel is multiplied with."""
    start = [i * d for i, d in zip(position, params.dilation, strict=True)]
    stop = [
        a + s * (n - 1) + 1
        for a, s, n in zip(start, params.strides, params.output_size, strict=True)
    ]
    n, channels = padded.shape[0], padded.shape[3]
    return lax.slice(padded, (0, *start, 0), (n, *stop, channels), (1, *params.strides, 1))


def _kernel_positions(params: ConvParams) -> Iterator[tuple[int, int]]:
    height, width = params.kernel_size
    return ((i, j) for i in range(height) for j in range(width))
