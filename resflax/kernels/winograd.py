"""3x3 convolutions of stride 1 by Winograd's F(2x2, 3x3), with 16 products instead of 36.

Lavin and Gray 2016 (arXiv:1509.09308, section 4.1), with the transforms

    y = A' [(G w G') * (B' x B)] A

over tiles of 4x4 pixels that overlap by 2. Each of the 16 positions of a tile is one matrix product
over channels. A transform is at most three additions, so float32 loses almost no accuracy.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from resflax.kernels.conv_params import Padding

# The kernel's transform G. Those of the image (B) and of the output (A) are written out below.
G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)


def convolve(
    x: Float[Array, "n h w c_in"], w: Float[Array, "3 3 c_in c_out"], padding: Padding
) -> Float[Array, "n h_out w_out c_out"]:
    """Convolves `x` with `w`; each padding is from 0 to 2."""
    height, width = x.shape[1] + sum(padding[0]) - 2, x.shape[2] + sum(padding[1]) - 2
    rows, columns = -(-height // 2), -(-width // 2)
    kernel = jnp.einsum("ia,jb,abco->ijco", G, G, w)
    products = [
        [lax.dot_general(v, kernel[i, j], (((3,), (0,)), ((), ()))) for j, v in enumerate(tile_row)]
        for i, tile_row in enumerate(_image_tiles(x, padding, rows, columns))
    ]
    by_row = [_output_transform(list(column)) for column in zip(*products, strict=True)]
    y = jnp.stack(
        [jnp.stack(_output_transform(list(row)), 3) for row in zip(*by_row, strict=True)], 2
    )
    return y.reshape(len(x), 2 * rows, 2 * columns, w.shape[-1])[:, :height, :width]


def kernel_gradient(
    x: Float[Array, "n h w c_in"], g: Float[Array, "n h_out w_out c_out"], padding: Padding
) -> Float[Array, "3 3 c_in c_out"]:
    """Returns the gradient for `w`, given the gradient `g` for `convolve(x, w, padding)`."""
    rows, columns = -(-g.shape[1] // 2), -(-g.shape[2] // 2)
    fill = ((0, 0), (0, 2 * rows - g.shape[1]), (0, 2 * columns - g.shape[2]), (0, 0))
    g = jnp.pad(g, fill)
    g_tiles = [
        _output_transform_transpose(row, 2, columns)
        for row in _output_transform_transpose(g, 1, rows)
    ]
    products = jnp.stack(
        [
            jnp.stack([channel_outer_product(a, b) for a, b in zip(x_row, g_row, strict=True)])
            for x_row, g_row in zip(_image_tiles(x, padding, rows, columns), g_tiles, strict=True)
        ]
    )
    return jnp.einsum("ia,jb,ijco->abco", G, G, products)


def channel_outer_product(
    a: Float[Array, "*pixels a_channels"], b: Float[Array, "*pixels b_channels"]
) -> Float[Array, "a_channels b_channels"]:
    """Sums the outer product of `a`'s and `b`'s channels over all pixels.

    From 8192 pixels on, computed in two halves: XLA:CPU is slower at one product over a very long
    axis.
    """
    if a.shape[-1] > b.shape[-1]:  # XLA:CPU transposes the first operand: pass the smaller one
        return channel_outer_product(b, a).T
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    if len(a) % 2 or len(a) < 8192:
        return lax.dot_general(a, b, (((0,), (0,)), ((), ())))
    a, b = (m.reshape(2, -1, m.shape[1]) for m in (a, b))
    return lax.dot_general(a, b, (((1,), (1,)), ((0,), (0,)))).sum(0)


def _image_tiles(x: Array, padding: Padding, rows: int, columns: int) -> list[list[Array]]:
    """Returns the transformed 4x4 tile positions, each of shape `(n, rows, columns, channels)`."""
    (top, _), (left, _) = padding
    bottom, right = 2 * rows + 2 - top - x.shape[1], 2 * columns + 2 - left - x.shape[2]
    pads = ((0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0))
    x = lax.pad(x, jnp.zeros((), x.dtype), pads)
    return [_image_transform(row, 2, columns) for row in _image_transform(x, 1, rows)]


def _image_transform(x: Array, axis: int, count: int) -> list[Array]:
    """Applies B' along an axis of length `2 * count + 2`."""
    d = [_every_other(x, axis, i, count) for i in range(4)]
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _output_transform(m: list[Array]) -> list[Array]:
    """Applies A' to the four positions along an axis."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _output_transform_transpose(g: Array, axis: int, count: int) -> list[Array]:
    """Applies A along an axis of length `2 * count`."""
    d = [_every_other(g, axis, i, count) for i in range(2)]
    return [d[0], d[0] + d[1], d[0] - d[1], -d[1]]


def _every_other(x: Array, axis: int, start: int, count: int) -> Array:
    return lax.slice_in_dim(x, start, start + 2 * count - 1, 2, axis)
