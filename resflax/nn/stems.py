"""The layers before the first block, as a table of convolutions and a pooling function."""

import math
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resflax.kernels.pool import max_pool
from resflax.nn.antialias import AntiAlias
from resflax.nn.layers import Ops, Sizes, make_ops, per_axis
from resflax.nn.orders import NORM_ACT, Order, apply_steps

PROBE_SIZE, PROBE_WIDTH = 64, 64


class StemConv(NamedTuple):
    """One convolution of a stem.

    Attributes:
      kernel: side of the kernel, in pixels, or one size per spatial axis.
      stride: 1 or 2, or one per spatial axis.
      width_fraction: output channels as a fraction of the stem's width.
    """

    kernel: Sizes
    stride: Sizes = 1
    width_fraction: Fraction = Fraction(1)


class Stem(NamedTuple):
    """Row of `STEMS`.

    Attributes:
      convs: convolutions, each followed by a norm and an activation.
      pool: `(ops, x, antialias) -> x`, with stride 2. None for no pooling.
      function: `(ops, x, features) -> x` in place of convolutions. Its strides are found from the
        shape that it gives an image.
    """

    convs: tuple[StemConv, ...]
    pool: Callable[[Ops, Array, AntiAlias], Array] | None = None
    function: Callable[[Ops, Array, int], Array] | None = None

    def conv_strides(self, dimensions: int) -> tuple[int, ...]:
        """Returns the stride of the convolutions together along each axis, in pixels."""
        if self.function:
            return _function_strides(self.function, dimensions)
        strides = [per_axis(conv.stride, dimensions) for conv in self.convs]
        return tuple(math.prod(axis) for axis in zip(*strides, strict=True))

    def strides(self, dimensions: int) -> tuple[int, ...]:
        """Returns the stride of convolutions and pooling together along each axis, in pixels."""
        return tuple(n * (2 if self.pool else 1) for n in self.conv_strides(dimensions))


@cache
def _function_strides(function: Callable[..., Array], dimensions: int) -> tuple[int, ...]:
    """Returns the strides of a function, from the shape that it gives an image of 64 pixels."""

    class Probe(nn.Module):
        @nn.compact
        def __call__(self, x: Array) -> Array:
            ops = make_ops(train=False, dtype=x.dtype, dimensions=dimensions)
            return function(ops, x, PROBE_WIDTH)

    image = jax.ShapeDtypeStruct((1, *[PROBE_SIZE] * dimensions, 3), jnp.float32)
    result, _ = jax.eval_shape(lambda x: Probe().init_with_output(jax.random.key(0), x), image)
    return tuple(round(PROBE_SIZE / max(size, 1)) for size in result.shape[1:-1])


def apply_stem(
    ops: Ops, stem: Stem, x: Float[Array, "n *space channels"], width: int, *, order: Order
) -> Float[Array, "n *out_space {width}"]:
    """Runs the convolutions of a stem, without its pooling.

    Modules are called `stem_conv` and `stem_norm`, numbered from 1 if there are several. The
    last norm and activation are omitted where the first block starts with its own.
    """
    if stem.function:
        return stem.function(ops, x, width)
    last = len(stem.convs)
    for i, conv in enumerate(stem.convs, start=1):
        number = i if last > 1 else ""
        features = int(width * conv.width_fraction)
        run_conv = ops.image_conv if i == 1 else ops.conv
        x = run_conv(x, features, conv.kernel, conv.stride, name=f"stem_conv{number}")
        steps = order.stem if i == last else NORM_ACT
        x = apply_steps(ops, steps, x, name=f"stem_norm{number}")
    return x


def default_pool(
    ops: Ops, x: Float[Array, "n *space channels"], antialias: AntiAlias
) -> Float[Array, "n *out_space channels"]:
    """Applies `antialias.pool`: by default 3x3 max pooling with stride 2 (He et al. 2015)."""
    return antialias.pool(ops, x)


def conv_pool(
    ops: Ops, x: Float[Array, "n *space channels"], antialias: AntiAlias
) -> Float[Array, "n *out_space channels"]:
    """Applies a 3x3 convolution with stride 2, a norm and an activation (ResNet-RS)."""
    del antialias
    return ops.norm_act(ops.conv(x, x.shape[-1], 3, 2, name="stem_pool"), name="stem_pool_norm")


def zero_padded_pool(
    ops: Ops, x: Float[Array, "n *space channels"], antialias: AntiAlias
) -> Float[Array, "n *out_space channels"]:
    """Applies 3x3 max pooling with stride 2, with zeros instead of -inf as padding (BiT)."""
    del ops, antialias
    return max_pool(jnp.pad(x, ((0, 0), *[(1, 1)] * (x.ndim - 2), (0, 0))), padding=0)


_IMAGENET = (StemConv(7, 2),)
# "Bag of tricks" (Tong He et al. 2018, arXiv:1812.01187), figure 2c.
_DEEP = (StemConv(3, 2, Fraction(1, 2)), StemConv(3, 1, Fraction(1, 2)), StemConv(3))
_TIERED = (StemConv(3, 2, Fraction(3, 8)), *_DEEP[1:])

# What comes before the first stage.
STEMS: dict[str, Stem] = {
    # 7x7 convolution with stride 2, max pooling (He et al. 2015, table 1).
    "imagenet": Stem(_IMAGENET, default_pool),
    # Three 3x3 convolutions (Tong He et al. 2018, arXiv:1812.01187, figure 2c).
    "deep": Stem(_DEEP, default_pool),
    # The same, with fewer channels in the first (timm).
    "tiered": Stem(_TIERED, default_pool),
    # The deep one, with a convolution as pooling (ResNet-RS, Bello et al. 2021, arXiv:2103.07579).
    "rs": Stem(_DEEP, conv_pool),
    # That of "imagenet", with zeros as the padding of its pooling (BiT).
    "bit": Stem(_IMAGENET, zero_padded_pool),
    # One 3x3 convolution, for small images (He et al. 2015, section 4.2).
    "cifar": Stem((StemConv(3),)),
    # The same with stride 2: a quarter of the cost, for fast training.
    "cifar_stride2": Stem((StemConv(3, 2),)),
    # For clips (Tran et al. 2018, arXiv:1711.11248, table 1).
    "video": Stem((StemConv((3, 7, 7), (1, 2, 2)),)),
    # For clips, in two factors, of space and time (R(2+1)D, in the same paper).
    "video_2plus1d": Stem((StemConv((1, 7, 7), (1, 2, 2), Fraction(45, 64)), StemConv((3, 1, 1)))),
}
