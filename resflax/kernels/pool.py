"""Maximum, average and blur pooling of NHWC images."""

import itertools
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt8

NOT_IN_WINDOW = 255


def max_pool(
    x: Float[Array, "n h w c"], *, window: int = 3, stride: int = 2, padding: int = 1
) -> Float[Array, "n h_out w_out c"]:
    """Returns the maximum of each window, with `padding` on all four sides.

    Among equal values the gradient goes to the first in row-major order.

    >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0].tolist()
    [[5.0, 7.0], [13.0, 15.0]]
    """

    def by_slices(x: Array) -> Array:
        # XLA:CPU is slow at the gradient of a windowed maximum, and fast at that of maxima over
        # slices, first within rows and then across rows. In bfloat16 it would widen every slice
        # separately.
        dtype = x.dtype
        x = x.astype(dtype if dtype == jnp.float64 else jnp.float32)
        pad = (padding, padding, 0)
        x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), pad, pad, (0, 0, 0)))
        for axis in (2, 1):  # within a row first, so that ties go to the first in row-major order
            x = reduce(_maximum, _window_slices(x, axis, window, stride))
        return x.astype(dtype)

    def by_windows(x: Array) -> Array:
        size, strides = (1, window, window, 1), (1, stride, stride, 1)
        pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
        return lax.reduce_window(x, -jnp.inf, lax.max, size, strides, pads)

    def by_index(x: Array) -> Array:
        return max_pool_by_index(x, window, stride, padding)

    return lax.platform_dependent(x, cpu=by_slices, tpu=by_windows, default=by_index)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def max_pool_by_index(
    x: Float[Array, "n h w c"], window: int, stride: int, padding: int
) -> Float[Array, "n h_out w_out c"]:
    """Returns the maximum of each window, with a derivative for GPUs.

    It keeps the position of each maximum as one byte. XLA's gradient on a GPU finds the positions
    once more, keeps them in four arrays of int32, and adds to memory by atomic operations.
    """
    size, strides = (1, window, window, 1), (1, stride, stride, 1)
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, size, strides, pads)


@max_pool_by_index.defjvp
def _max_pool_by_index_jvp(
    window: int, stride: int, padding: int, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    pad = (padding, padding, 0)
    x = primals[0]
    x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), pad, pad, (0, 0, 0)))
    rows = _window_slices(x, 1, window, stride)
    first, *others = (x for row in rows for x in _window_slices(row, 2, window, stride))
    y, index = first, jnp.zeros(first.shape, jnp.uint8)
    for i, x in enumerate(others, start=1):
        index = jnp.where(x > y, jnp.uint8(i), index)
        y = jnp.maximum(x, y)
    return y, _take_from_windows(tangents[0], index, window, stride, padding)


def _take_from_windows(
    x: Float[Array, "n h w c"],
    index: UInt8[Array, "n h_out w_out c"],
    window: int,
    stride: int,
    padding: int,
) -> Float[Array, "n h_out w_out c"]:
    """Returns the element of each window at the position `index`, in row-major order.

    `x` is split into blocks of `stride * stride` pixels, of which a window covers a few. In the
    transpose, every pixel then reads only the windows that contain it, in one pass.
    """
    n, height, width, channels = index.shape
    count = -(-window // stride)  # blocks that a window covers along an axis, the last one in part
    sizes = [(size + count - 1) * stride for size in (height, width)]
    pads = [(padding, size - padding - x.shape[i], 0) for i, size in enumerate(sizes, start=1)]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *pads, (0, 0, 0)))
    blocks = x.reshape(n, sizes[0] // stride, stride, sizes[1] // stride, stride, channels)
    offset = np.arange(count * stride)
    position = offset[:, None] * window + offset
    position[np.maximum(offset[:, None], offset) >= window] = NOT_IN_WINDOW
    codes = position.astype(np.uint8).reshape(count, 1, 1, stride, count, 1, stride, 1)
    index, y = index[:, :, None, :, None], jnp.zeros((n, height, width, channels), x.dtype)
    for a, b in itertools.product(range(count), repeat=2):
        part = blocks[:, a : a + height, :, b : b + width]
        selected = jnp.where(index == codes[a, :, :, :, b], part, jnp.zeros_like(part))
        y = y + jnp.sum(selected, (2, 4))
    return y


def avg_pool(x: Float[Array, "n h w c"], stride: int) -> Float[Array, "n h_out w_out c"]:
    """Returns the mean of 2x2 windows; pixels outside of the image do not count.

    >>> avg_pool(jnp.arange(9.0).reshape(1, 3, 3, 1), 2)[0, :, :, 0].tolist()
    [[2.0, 3.5], [6.5, 8.0]]
    """
    for axis in (1, 2):
        if x.shape[axis] % stride:  # repeating a last row without partner leaves its mean unchanged
            # Not `jnp.pad`: its gradient exchanges images where XLA splits the batch.
            last = lax.slice_in_dim(x, x.shape[axis] - 1, None, axis=axis)
            x = jnp.concatenate([x, last], axis)
        x = _mean_of_pairs(x, axis, stride)
    return x


def avg_pool_same(x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """Returns the mean of 2x2 windows at stride 1, with zeros below and right of the image."""
    for axis in (1, 2):
        widths = [(0, 1 if a == axis else 0) for a in range(x.ndim)]
        x = _mean_of_pairs(jnp.pad(x, widths), axis, 1)
    return x


def blur_pool(x: Float[Array, "n h w c"], stride: int) -> Float[Array, "n h_out w_out c"]:
    """Applies the binomial filter (1, 2, 1) / 4 along both axes, with reflected padding.

    Zhang 2019 (arXiv:1904.11486).

    >>> blur_pool(jnp.eye(3).reshape(1, 3, 3, 1), 2)[0, :, :, 0].tolist()
    [[0.5, 0.25], [0.25, 0.5]]
    """
    for axis in (1, 2):
        widths = [(1, 1) if a == axis else (0, 0) for a in range(x.ndim)]
        padded = jnp.pad(x, widths, mode="reflect")
        before, center, after = _window_slices(padded, axis, 3, stride)
        x = 0.25 * before + 0.5 * center + 0.25 * after
    return x


def _mean_of_pairs(x: Array, axis: int, stride: int) -> Array:
    return sum(_window_slices(x, axis, 2, stride)) * jnp.array(0.5, x.dtype)


def _window_slices(x: Array, axis: int, window: int, stride: int) -> list[Array]:
    """Returns, for each offset in a window, the elements at that offset of all windows."""
    count = (x.shape[axis] - window) // stride + 1
    return [
        lax.slice_in_dim(x, i, i + stride * (count - 1) + 1, stride, axis) for i in range(window)
    ]


@jax.custom_jvp
def _maximum(a: Array, b: Array) -> Array:
    """Returns the maximum; at ties its derivative is that of `a`, where JAX's is the mean."""
    return jnp.maximum(a, b)


@_maximum.defjvp
def _maximum_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    (a, b), (ta, tb) = primals, tangents
    return _maximum(a, b), jnp.where(a >= b, ta, tb)
