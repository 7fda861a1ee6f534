"""Windows over images: maximum, mean and blur, as fast as each platform has them."""

from functools import reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def max_pool(x: Array, *, window: int = 3, stride: int = 2, padding: int = 1) -> Array:
    """The largest value of each window of an image `(n, height, width, channels)`.

    Among equal ones the gradient goes to the first, in reading order.

    >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0].tolist()
    [[5.0, 7.0], [13.0, 15.0]]
    """

    def slices(x: Array) -> Array:
        # XLA's gradient of a windowed maximum is slow on the CPU, that of two rows of maxima fast.
        # (In bfloat16 XLA would widen every slice by itself.)
        dtype = x.dtype
        x = x.astype(dtype if dtype == jnp.float64 else jnp.float32)
        fill = jnp.array(-jnp.inf, x.dtype)
        pad = (padding, padding, 0)
        x = lax.pad(x, fill, ((0, 0, 0), pad, pad, (0, 0, 0)))
        for axis in (2, 1):  # along a row first, so that the first in reading order wins
            x = reduce(_larger, _slices(x, axis, window, stride))
        return x.astype(dtype)

    def windows(x: Array) -> Array:
        pad = (padding, padding)
        return nn.max_pool(x, (window, window), (stride, stride), (pad, pad))

    return lax.platform_dependent(x, cpu=slices, default=windows)


def _slices(x: Array, axis: int, window: int, stride: int) -> list[Array]:
    count = (x.shape[axis] - window) // stride + 1
    return [
        lax.slice_in_dim(x, i, i + stride * (count - 1) + 1, stride, axis) for i in range(window)
    ]


@jax.custom_jvp
def _larger(a: Array, b: Array) -> Array:
    """The maximum; where they are equal its derivative is that of `a`, not of their mean."""
    return jnp.maximum(a, b)


@_larger.defjvp
def _larger_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (a, b), (ta, tb) = primals, tangents
    return _larger(a, b), jnp.where(a >= b, ta, tb)


def avg_pool(x: Array, stride: int) -> Array:
    """The mean of 2x2 pixels at every `stride`-th; of those that are inside, where some are not.

    >>> avg_pool(jnp.arange(9.0).reshape(1, 3, 3, 1), 2)[0, :, :, 0].tolist()
    [[2.0, 3.5], [6.5, 8.0]]
    """
    # A last row that is alone is paired with itself, which leaves its mean as it is.
    return _means(x, stride, "edge", [-size % stride for size in x.shape[1:3]])


def avg_pool_same(x: Array) -> Array:
    """The mean of 2x2 pixels at every pixel, with zeros below and to the right of the image."""
    return _means(x, 1, "constant", [1, 1])


def _means(x: Array, stride: int, mode: str, after: list[int]) -> Array:
    for axis, extra in zip((1, 2), after, strict=True):
        widths = [(0, extra if a == axis else 0) for a in range(x.ndim)]
        x = sum(_slices(jnp.pad(x, widths, mode=mode), axis, 2, stride)) * jnp.array(0.5, x.dtype)
    return x


def blur_pool(x: Array, stride: int) -> Array:
    """The binomial filter (1, 2, 1) / 4 down and across, at every `stride`-th pixel.

    The image goes on beyond its edges as its reflection (Zhang 2019).

    >>> blur_pool(jnp.eye(3).reshape(1, 3, 3, 1), 2)[0, :, :, 0].tolist()
    [[0.5, 0.25], [0.25, 0.5]]
    """
    for axis in (1, 2):
        widths = [(1, 1) if a == axis else (0, 0) for a in range(x.ndim)]
        before, middle, after = _slices(jnp.pad(x, widths, mode="reflect"), axis, 3, stride)
        x = 0.25 * before + 0.5 * middle + 0.25 * after
    return x
