"""What a shortcut does where shapes differ (He et al. 2015, section 3.3, options A, B and C).

Option D is that of the "bag of tricks" (Tong He et al. 2018, arXiv:1812.01187, figure 2e).

A shortcut is a function `(h, shape) -> array of that shape`. It finds its stride by comparing the
two shapes, axis by axis, so that it serves any rank.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from resflax.kernels.pool import avg_pool, avg_pool_same
from resflax.nn.blocks import BlockGeometry
from resflax.nn.layers import Ops, he_normal_fan_out

Array = jax.Array
Shape = tuple[int, ...]
Shortcut = Callable[[Array, Shape], Array]


def strides_between(source: Shape, target: Shape) -> Shape:
    """The strides that take every axis of `source` but the last to `target`, rounding sizes up.

    Raises:
      ValueError: if there are none.

    >>> strides_between((8, 7, 7, 64), (8, 4, 4, 128))
    (1, 2, 2)
    """
    if len(source) != len(target):
        raise ValueError(f"a shortcut cannot change the rank: from {source} to {target}")
    pairs = zip(source[:-1], target[:-1], strict=True)
    strides = tuple(1 if a == b else -(-a // b) if b else 0 for a, b in pairs)
    reached = tuple(-(-a // s) if s else 0 for a, s in zip(source[:-1], strides, strict=True))
    if not all(strides) or reached != target[:-1]:
        raise ValueError(f"no stride leads from {source} to {target}")
    return strides


def subsample(h: Array, shape: Shape) -> Array:
    """Every stride-th element of `h` along each axis but the last, to the sizes of `shape`."""
    return lax.slice(h, (0,) * h.ndim, h.shape, (*strides_between(h.shape, shape), 1))


def zero_pad(h: Array, shape: Shape) -> Array:
    """Option A: subsample, and pad the channels with zeros on both sides. No parameters.

    Raises:
      ValueError: if there are fewer channels in `shape` than in `h`.

    >>> zero_pad(jnp.ones((1, 4, 4, 2)), (1, 2, 2, 4))[0, 0, 0].tolist()
    [0.0, 1.0, 1.0, 0.0]
    """
    extra = shape[-1] - h.shape[-1]
    if extra < 0:
        raise ValueError(f"option A cannot narrow channels: from {h.shape} to {shape}")
    h = subsample(h, shape)
    padding = [(0, 0)] * (h.ndim - 1) + [(extra // 2, extra - extra // 2)]
    return jnp.pad(h, padding)


def linear_projection(h: Array, shape: Shape) -> Array:
    """`Ws h`, one linear map over the channels of the subsampled input; for any rank."""
    dense = nn.Dense(
        shape[-1], use_bias=False, dtype=h.dtype, kernel_init=he_normal_fan_out, name="Ws"
    )
    return dense(subsample(h, shape))


def projection(ops: Ops, scale: BlockGeometry, *, norm: bool) -> Shortcut:
    """Option B: `Ws h` as a strided 1x1 convolution, with a norm behind it if `norm`."""
    del scale  # its stride is found from the shapes

    def project(h: Array, shape: Shape) -> Array:
        y = ops.conv(h, shape[-1], 1, strides_between(h.shape, shape)[1:], name="Ws")
        return ops.norm(y, name="Ws_norm") if norm else y

    return project


def wide_projection(ops: Ops, scale: BlockGeometry, *, norm: bool) -> Shortcut:
    """Option B whose kernel is 3x3 where the block changes its scale (SENet-154)."""
    kernel = 3 if scale.stride > 1 or scale.dilation > 1 else 1

    def project(h: Array, shape: Shape) -> Array:
        stride = strides_between(h.shape, shape)[1:]
        y = ops.conv(h, shape[-1], kernel, stride, name="Ws", dilation=scale.before)
        return ops.norm(y, name="Ws_norm") if norm else y

    return project


def pooled_projection(ops: Ops, scale: BlockGeometry, *, norm: bool) -> Shortcut:
    """Option D: the mean of 2x2 pixels takes the stride, a 1x1 convolution the channels."""

    def project(h: Array, shape: Shape) -> Array:
        if scale.stride > 1:
            h = avg_pool(h, scale.stride)
        elif scale.dilation > 1:
            h = avg_pool_same(h)
        y = ops.conv(h, shape[-1], 1, name="Ws")
        return ops.norm(y, name="Ws_norm") if norm else y

    return project


class Option(NamedTuple):
    """A row of `SHORTCUTS`: how to make the shortcut, and whether it stands in every block."""

    make: Callable[..., Shortcut] | None
    always: bool = False


SHORTCUTS = {
    "A": Option(lambda ops, scale, *, norm: zero_pad),
    "B": Option(projection),
    "B3": Option(wide_projection),
    "C": Option(projection, always=True),
    "D": Option(pooled_projection),
    "none": Option(None),
}
