"""The layers before the first block, as a table of convolutions and a pooling function."""

from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from resflax.kernels.pool import max_pool
from resflax.nn.antialias import AntiAlias
from resflax.nn.layers import Ops


class StemConv(NamedTuple):
    """One convolution of a stem.

    Attributes:
      kernel: side of the kernel, in pixels.
      stride: 1 or 2.
      width_fraction: output channels as a fraction of the stem's width.
    """

    kernel: int
    stride: int = 1
    width_fraction: Fraction = Fraction(1)


class Stem(NamedTuple):
    """Row of `STEMS`.

    Attributes:
      convs: convolutions, each followed by a norm and an activation.
      pool: `(ops, x, antialias) -> x`, with stride 2. None for no pooling.
      function: `(ops, x, features) -> x` in place of convolutions.
      function_stride: its stride, in pixels.
    """

    convs: tuple[StemConv, ...]
    pool: Callable[[Ops, Array, AntiAlias], Array] | None = None
    function: Callable[[Ops, Array, int], Array] | None = None
    function_stride: int = 1

    @property
    def conv_stride(self) -> int:
        """Stride of the convolutions together, in pixels."""
        if self.function:
            return self.function_stride
        return 2 ** sum(conv.stride == 2 for conv in self.convs)

    @property
    def stride(self) -> int:
        """Stride of convolutions and pooling together, in pixels."""
        return self.conv_stride * (2 if self.pool else 1)


def apply_stem(
    ops: Ops, stem: Stem, x: Float[Array, "n height width channels"], width: int, *, preact: bool
) -> Float[Array, "n out_height out_width {width}"]:
    """Runs the convolutions of a stem, without its pooling.

    Modules are called `stem_conv` and `stem_norm`, numbered from 1 if there are several. With
    `preact` the last norm and activation are omitted: the first block starts with its own.
    """
    if stem.function:
        return stem.function(ops, x, width)
    last = len(stem.convs)
    for i, conv in enumerate(stem.convs, start=1):
        number = i if last > 1 else ""
        features = int(width * conv.width_fraction)
        run_conv = ops.image_conv if i == 1 else ops.conv
        x = run_conv(x, features, conv.kernel, conv.stride, name=f"stem_conv{number}")
        if i < last or not preact:
            x = ops.norm_act(x, name=f"stem_norm{number}")
    return x


def default_pool(
    ops: Ops, x: Float[Array, "n height width channels"], antialias: AntiAlias
) -> Float[Array, "n out_height out_width channels"]:
    """Applies `antialias.pool`: by default 3x3 max pooling with stride 2 (He et al. 2015)."""
    return antialias.pool(ops, x)


def conv_pool(
    ops: Ops, x: Float[Array, "n height width channels"], antialias: AntiAlias
) -> Float[Array, "n out_height out_width channels"]:
    """Applies a 3x3 convolution with stride 2, a norm and an activation (ResNet-RS)."""
    del antialias
    return ops.norm_act(ops.conv(x, x.shape[-1], 3, 2, name="stem_pool"), name="stem_pool_norm")


def zero_padded_pool(
    ops: Ops, x: Float[Array, "n height width channels"], antialias: AntiAlias
) -> Float[Array, "n out_height out_width channels"]:
    """Applies 3x3 max pooling with stride 2, with zeros instead of -inf as padding (BiT)."""
    del ops, antialias
    return max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), padding=0)


_IMAGENET = (StemConv(7, 2),)
# "Bag of tricks" (Tong He et al. 2018, arXiv:1812.01187), figure 2c.
_DEEP = (StemConv(3, 2, Fraction(1, 2)), StemConv(3, 1, Fraction(1, 2)), StemConv(3))
_TIERED = (StemConv(3, 2, Fraction(3, 8)), *_DEEP[1:])

STEMS: dict[str, Stem] = {
    "imagenet": Stem(_IMAGENET, default_pool),
    "deep": Stem(_DEEP, default_pool),
    "tiered": Stem(_TIERED, default_pool),
    "rs": Stem(_DEEP, conv_pool),
    "bit": Stem(_IMAGENET, zero_padded_pool),
    # For small images (He et al. 2015, section 4.2).
    "cifar": Stem((StemConv(3),)),
}
