"""Maximum, average and blur pooling along all axes but the first and the last."""

from collections.abc import Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def max_pool(
    x: Float[Array, "n *space c"], *, window: int = 3, stride: int = 2, padding: int = 1
) -> Float[Array, "n *out_space c"]:
    """Returns the maximum of each window, with `padding` on both sides of each spatial axis.

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
        x = _pad_space(x, -jnp.inf, padding)
        # The last axis first, so that ties go to the first in row-major order.
        for axis in reversed(range(1, x.ndim - 1)):
            x = reduce(_maximum, _window_slices(x, axis, window, stride))
        return x.astype(dtype)

    def by_windows(x: Array) -> Array:
        return _windowed_maximum(x, window, stride, padding)

    def by_index(x: Array) -> Array:
        return max_pool_by_index(x, window, stride, padding)

    return lax.platform_dependent(x, cpu=by_slices, tpu=by_windows, default=by_index)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def max_pool_by_index(
    x: Float[Array, "n *space c"], window: int, stride: int, padding: int
) -> Float[Array, "n *out_space c"]:
    """Returns the maximum of each window, with a derivative for GPUs.

    It keeps the position of each maximum as one byte. XLA's gradient on a GPU finds the positions
    once more, keeps them in four arrays of int32, and adds to memory by atomic operations.
    """
    return _windowed_maximum(x, window, stride, padding)


@max_pool_by_index.defjvp
def _max_pool_by_index_jvp(
    window: int, stride: int, padding: int, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    def positions(x: Array, fill: float) -> list[Array]:
        """Returns the elements at each position of all windows, in row-major order."""
        parts = [_pad_space(x, fill, padding)]
        for axis in range(1, x.ndim - 1):
            parts = [s for part in parts for s in _window_slices(part, axis, window, stride)]
        return parts

    first, *others = positions(primals[0], -jnp.inf)
    dtype = jnp.uint8 if len(others) < 256 else jnp.int32
    y, index = first, jnp.zeros(first.shape, dtype)
    for i, x in enumerate(others, start=1):
        index = jnp.where(x > y, jnp.array(i, dtype), index)
        y = jnp.maximum(x, y)
    dy = jnp.zeros_like(y)
    for i, dx in enumerate(positions(tangents[0], 0)):
        dy = dy + jnp.where(index == i, dx, jnp.zeros_like(dx))
    return y, dy


def _windowed_maximum(x: Array, window: int, stride: int, padding: int) -> Array:
    space = x.ndim - 2
    size, strides = (1, *[window] * space, 1), (1, *[stride] * space, 1)
    pads = ((0, 0), *[(padding, padding)] * space, (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, size, strides, pads)


def _pad_space(x: Array, fill: float, padding: int) -> Array:
    pads = [(padding, padding, 0)] * (x.ndim - 2)
    return lax.pad(x, jnp.array(fill, x.dtype), ((0, 0, 0), *pads, (0, 0, 0)))


def avg_pool(
    x: Float[Array, "n *space c"], stride: int | Sequence[int]
) -> Float[Array, "n *out_space c"]:
    """Returns the mean of windows of size 2; pixels outside of the image do not count.

    `stride` is one number for all spatial axes, or one per axis, where 1 leaves an axis as it is.

    >>> avg_pool(jnp.arange(9.0).reshape(1, 3, 3, 1), 2)[0, :, :, 0].tolist()
    [[2.0, 3.5], [6.5, 8.0]]
    """
    strides = [stride] * (x.ndim - 2) if isinstance(stride, int) else stride
    for axis, stride in enumerate(strides, start=1):
        if stride == 1:
            continue
        # Repeating a last row without partner leaves its mean unchanged. With a symbolic size, the
        # repeated row of an even number is in no window.
        if not isinstance(x.shape[axis], int) or x.shape[axis] % stride:
            # Not `jnp.pad`: its gradient exchanges images where XLA splits the batch.
            last = lax.slice_in_dim(x, x.shape[axis] - 1, None, axis=axis)
            x = jnp.concatenate([x, last], axis)
        x = _mean_of_pairs(x, axis, stride)
    return x


def every_nth(x: Float[Array, "*axes c"], strides: Sequence[int]) -> Float[Array, "*fewer c"]:
    """Returns every n-th element along all axes but the last, whose strides are given.

    >>> every_nth(jnp.arange(5.0)[:, None], (2,))[:, 0].tolist()
    [0.0, 2.0, 4.0]
    """
    for axis, stride in enumerate(strides):
        if stride > 1:  # up to the last element, so that symbolic sizes are those of convolutions
            last = stride * ((x.shape[axis] - 1) // stride)
            x = lax.slice_in_dim(x, 0, last + 1, stride, axis)
    return x


def avg_pool_same(x: Float[Array, "n *space c"]) -> Float[Array, "n *space c"]:
    """Returns the mean of windows of size 2 at stride 1, with zeros after the end of each axis."""
    for axis in range(1, x.ndim - 1):
        widths = [(0, 1 if a == axis else 0) for a in range(x.ndim)]
        x = _mean_of_pairs(jnp.pad(x, widths), axis, 1)
    return x


def blur_pool(x: Float[Array, "n *space c"], stride: int) -> Float[Array, "n *out_space c"]:
    """Applies the binomial filter (1, 2, 1) / 4 along all spatial axes, with reflected padding.

    Zhang 2019 (arXiv:1904.11486).

    >>> blur_pool(jnp.eye(3).reshape(1, 3, 3, 1), 2)[0, :, :, 0].tolist()
    [[0.5, 0.25], [0.25, 0.5]]
    """
    for axis in range(1, x.ndim - 1):
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
