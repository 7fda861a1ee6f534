"""Shortcuts for blocks whose input and output shapes differ.

Options A, B and C are those of He et al. 2015 (arXiv:1512.03385), section 3.3. Option D is that of
the "bag of tricks" (Tong He et al. 2018, arXiv:1812.01187, figure 2e).

A shortcut is a function `(h, shape) -> array of that shape`. It derives its strides from the two
shapes, axis by axis, so it works for any rank.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from resflax.kernels.pool import avg_pool, avg_pool_same, every_nth
from resflax.nn.blocks import BlockGeometry
from resflax.nn.layers import Ops, he_normal_fan_out

Shape = tuple[int, ...]
Shortcut = Callable[[Array, Shape], Array]
MAX_SYMBOLIC_STRIDE = 8


def strides_between(source: Shape, target: Shape) -> Shape:
    """Returns the strides that map all axes of `source` but the last to `target`, rounding up.

    Raises:
      ValueError: if no strides do.

    >>> strides_between((8, 7, 7, 64), (8, 4, 4, 128))
    (1, 2, 2)
    """
    if len(source) != len(target):
        raise ValueError(f"a shortcut cannot change the rank: got {source} to {target}")
    pairs = zip(source[:-1], target[:-1], strict=True)
    strides = tuple(_stride_between(a, b) for a, b in pairs)
    if not all(strides):
        raise ValueError(f"no strides map {source} to {target}")
    return strides


def _stride_between(size: int, target: int) -> int:
    """Returns the stride that maps a size to another one, rounding up; 0 if there is none."""
    if size == target:
        return 1
    if not (isinstance(size, int) and isinstance(target, int)):
        # Symbolic, for export: equal only in the form that a convolution gives to its result.
        candidates = (s for s in range(2, MAX_SYMBOLIC_STRIDE + 1) if (size - 1) // s + 1 == target)
        return next(candidates, 0)
    stride = -(-size // target) if target else 0
    return stride if stride and -(-size // stride) == target else 0


def subsample(
    h: Float[Array, "*source channels"], shape: Shape
) -> Float[Array, "*target channels"]:
    """Returns every stride-th element along all axes of `h` but the last, to the sizes of `shape`.

    Raises:
      ValueError: if no strides map the shape of `h` to `shape`.
    """
    return every_nth(h, strides_between(h.shape, shape))


def zero_pad(
    h: Float[Array, "*source channels"], shape: Shape, *, groups: int = 1
) -> Float[Array, "*target out_channels"]:
    """Subsamples and pads the channels with zeros on both sides (option A); no parameters.

    With `groups`, each group of the channels is padded on its own.

    Raises:
      ValueError: if `shape` has fewer channels than `h`.

    >>> zero_pad(jnp.ones((1, 4, 4, 2)), (1, 2, 2, 4))[0, 0, 0].tolist()
    [0.0, 1.0, 1.0, 0.0]
    >>> zero_pad(jnp.ones((1, 4, 4, 2)), (1, 2, 2, 6), groups=2)[0, 0, 0].tolist()
    [0.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    """
    extra = (shape[-1] - h.shape[-1]) // groups
    if extra < 0:
        raise ValueError(f"option A cannot reduce the number of channels: got {h.shape} to {shape}")
    h = subsample(h, shape)
    h = h.reshape(*h.shape[:-1], groups, -1) if groups > 1 else h
    padding = [(0, 0)] * (h.ndim - 1) + [(extra // 2, extra - extra // 2)]
    return jnp.pad(h, padding).reshape(shape)


def linear_projection(
    h: Float[Array, "*source channels"], shape: Shape
) -> Float[Array, "*target out_channels"]:
    """Computes `Ws h`, a linear map over the channels of the subsampled input, for any rank."""
    dense = nn.Dense(
        shape[-1], use_bias=False, dtype=h.dtype, kernel_init=he_normal_fan_out, name="Ws"
    )
    return dense(subsample(h, shape))


def projection(ops: Ops, geometry: BlockGeometry, *, norm: bool) -> Shortcut:
    """Makes option B: `Ws h` as a strided 1x1 convolution, followed by a norm if `norm`."""
    del geometry  # the shapes give the stride

    def project(h: Array, shape: Shape) -> Array:
        stride = strides_between(h.shape, shape)[1:]
        if not norm:
            return ops.conv(h, shape[-1], 1, stride, name="Ws")
        return ops.conv_norm(h, shape[-1], 1, stride, name="Ws", norm_name="Ws_norm")

    return project


def projection_3x3(ops: Ops, geometry: BlockGeometry, *, norm: bool) -> Shortcut:
    """Makes option B with a 3x3 kernel in blocks that stride or dilate (SENet-154)."""
    kernel = 3 if geometry.stride > 1 or geometry.dilation > 1 else 1

    def project(h: Array, shape: Shape) -> Array:
        stride = strides_between(h.shape, shape)[1:]
        y = ops.conv(h, shape[-1], kernel, stride, name="Ws", dilation=geometry.in_dilation)
        return ops.norm(y, name="Ws_norm") if norm else y

    return project


def pooled_projection(ops: Ops, geometry: BlockGeometry, *, norm: bool) -> Shortcut:
    """Makes option D: average pooling of size 2 with the block's stride, then a 1x1 convolution."""

    def project(h: Array, shape: Shape) -> Array:
        if geometry.stride > 1:
            h = avg_pool(h, strides_between(h.shape, shape)[1:])
        elif geometry.dilation > 1:
            h = avg_pool_same(h)
        y = ops.conv(h, shape[-1], 1, name="Ws")
        return ops.norm(y, name="Ws_norm") if norm else y

    return project


class ShortcutRow(NamedTuple):
    """Row of `SHORTCUTS`.

    Attributes:
      make: `(ops, geometry, *, norm) -> shortcut`. None for a plain network without shortcuts.
      always: whether every block calls the shortcut, even where shapes agree.
    """

    make: Callable[..., Shortcut] | None
    always: bool = False


# Shortcuts by name. A, B, B3 and D are the identity where input and output have the same shape.
SHORTCUTS: dict[str, ShortcutRow] = {
    # Strided identity, with zeros as the new channels; no parameters (He et al. 2015, section 3.3).
    "A": ShortcutRow(lambda ops, geometry, *, norm: partial(zero_pad, groups=ops.channel_groups)),
    "B": ShortcutRow(projection),  # strided 1x1 convolution (section 3.3)
    "B3": ShortcutRow(projection_3x3),  # 3x3 convolution where it strides or dilates (SENet-154)
    "C": ShortcutRow(projection, always=True),  # 1x1 convolution in all blocks (section 3.3)
    "D": ShortcutRow(pooled_projection),  # average pooling, then a 1x1 convolution (ResNet-D)
    "none": ShortcutRow(None),  # a plain network
}
