"""3x3 convolutions of stride 1 as Winograd's F(2x2, 3x3): 16 products in the place of 36.

Lavin and Gray 2016 (arXiv:1509.09308, section 4.1) with the transforms

    y = A' [(G w G') * (B' x B)] A

over tiles of 4x4 pixels that overlap by 2. Each of the 16 positions of a tile is one matrix
product over channels; a transform is three additions, so float32 loses next to nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
Padding = tuple[tuple[int, int], tuple[int, int]]

# The kernel's transform G; those of image (B) and output (A) are written out below.
G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)


def _every_other(x: Array, axis: int, start: int, count: int) -> Array:
    return lax.slice_in_dim(x, start, start + 2 * count - 1, 2, axis)


def _image_tiles(x: Array, axis: int, count: int) -> list[Array]:
    """B' along one axis of length 2 * count + 2."""
    d = [_every_other(x, axis, i, count) for i in range(4)]
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _gradient_tiles(g: Array, axis: int, count: int) -> list[Array]:
    """A along one axis of length 2 * count."""
    d = [_every_other(g, axis, i, count) for i in range(2)]
    return [d[0], d[0] + d[1], d[0] - d[1], -d[1]]


def _outputs(m: list[Array]) -> list[Array]:
    """A' of the four positions along one axis."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _tiles(x: Array, padding: Padding, rows: int, columns: int) -> list[list[Array]]:
    """The padded image's 4x4 positions, each `(n, rows, columns, channels)`."""
    (top, _), (left, _) = padding
    below, right = 2 * rows + 2 - top - x.shape[1], 2 * columns + 2 - left - x.shape[2]
    x = lax.pad(
        x, jnp.zeros((), x.dtype), ((0, 0, 0), (top, below, 0), (left, right, 0), (0, 0, 0))
    )
    return [_image_tiles(row, 2, columns) for row in _image_tiles(x, 1, rows)]


def _output_size(x: Array, padding: Padding) -> tuple[int, int]:
    return x.shape[1] + sum(padding[0]) - 2, x.shape[2] + sum(padding[1]) - 2


def convolve(x: Array, w: Array, padding: Padding) -> Array:
    """`x` `(n, height, width, in)` convolved with `w` `(3, 3, in, out)`; padding from 0 to 2."""
    n, (height, width), out = len(x), _output_size(x, padding), w.shape[-1]
    rows, columns = -(-height // 2), -(-width // 2)
    kernel = jnp.einsum("ia,jb,abco->ijco", G, G, w)
    product = [
        [lax.dot_general(v, kernel[i, j], (((3,), (0,)), ((), ()))) for j, v in enumerate(row)]
        for i, row in enumerate(_tiles(x, padding, rows, columns))
    ]
    down = [_outputs(list(column)) for column in zip(*product, strict=True)]
    y = jnp.stack([jnp.stack(_outputs(list(row)), 3) for row in zip(*down, strict=True)], 2)
    return y.reshape(n, 2 * rows, 2 * columns, out)[:, :height, :width]


def over_pixels(a: Array, b: Array) -> Array:
    """The sum over all pixels of the outer product of `a`'s and `b`'s channels.

    In two halves: XLA's product over one long axis is slower than a pair of them.
    """
    if a.shape[-1] > b.shape[-1]:  # XLA transposes the first: let it be the smaller
        return over_pixels(b, a).T
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    if len(a) % 2 or len(a) < 8192:
        return lax.dot_general(a, b, (((0,), (0,)), ((), ())))
    a, b = (m.reshape(2, -1, m.shape[1]) for m in (a, b))
    return lax.dot_general(a, b, (((1,), (1,)), ((0,), (0,)))).sum(0)


def kernel_gradient(x: Array, g: Array, padding: Padding) -> Array:
    """The gradient `(3, 3, in, out)` for `w`, of `g`, the gradient for `convolve(x, w)`."""
    rows, columns = -(-g.shape[1] // 2), -(-g.shape[2] // 2)
    fill = ((0, 0), (0, 2 * rows - g.shape[1]), (0, 2 * columns - g.shape[2]), (0, 0))
    g = jnp.pad(g, fill)
    right = [_gradient_tiles(row, 2, columns) for row in _gradient_tiles(g, 1, rows)]
    products = jnp.stack(
        [
            jnp.stack([over_pixels(v, q) for v, q in zip(vs, qs, strict=True)])
            for vs, qs in zip(_tiles(x, padding, rows, columns), right, strict=True)
        ]
    )
    return jnp.einsum("ia,jb,ijco->abco", G, G, products)
