"""What stands before the first block, as data: a row of convolutions and a pooling."""

from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp

from resflax.kernels.pool import max_pool
from resflax.nn.antialias import AntiAlias
from resflax.nn.layers import Ops

Array = jax.Array


class StemConv(NamedTuple):
    """One convolution of a stem: its side and stride in pixels, its share of the stem's width."""

    kernel: int
    stride: int = 1
    share: Fraction = Fraction(1)


class Stem(NamedTuple):
    """A row of `STEMS`.

    Attributes:
      convs: with norm and activation behind each.
      pool: `(ops, x, antialias) -> x`, of stride 2; None for none.
    """

    convs: tuple[StemConv, ...]
    pool: Callable[[Ops, Array, AntiAlias], Array] | None = None

    @property
    def halvings(self) -> int:
        """How often it halves the image."""
        return sum(conv.stride == 2 for conv in self.convs) + (self.pool is not None)


def run_stem(ops: Ops, stem: Stem, x: Array, width: int, *, preact: bool) -> Array:
    """Its convolutions: `stem_conv` and `stem_norm`, numbered from 1 where there are several.

    A pre-activation network leaves the last norm and activation to its first block.
    """
    last = len(stem.convs)
    for i, conv in enumerate(stem.convs, start=1):
        number = i if last > 1 else ""
        features = int(width * conv.share)
        x = ops.conv(x, features, conv.kernel, conv.stride, name=f"stem_conv{number}")
        if i < last or not preact:
            x = ops.norm_act(x, name=f"stem_norm{number}")
    return x


def usual_pool(ops: Ops, x: Array, antialias: AntiAlias) -> Array:
    """3x3 maximum of stride 2 (He et al. 2015), or the anti-aliased network's."""
    del ops
    return antialias.pool(x)


def conv_pool(ops: Ops, x: Array, antialias: AntiAlias) -> Array:
    """3x3 convolution of stride 2 (ResNet-RS)."""
    del antialias
    return ops.norm_act(ops.conv(x, x.shape[-1], 3, 2, name="stem_pool"), name="stem_pool_norm")


def zero_padded_pool(ops: Ops, x: Array, antialias: AntiAlias) -> Array:
    """3x3 maximum of stride 2 over an image with a frame of zeros (BiT)."""
    del ops, antialias
    return max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), padding=0)


_ONE = (StemConv(7, 2),)
# "Bag of tricks" (Tong He et al. 2018, arXiv:1812.01187), figure 2c.
_DEEP = (StemConv(3, 2, Fraction(1, 2)), StemConv(3, 1, Fraction(1, 2)), StemConv(3))
_TIERED = (StemConv(3, 2, Fraction(3, 8)), *_DEEP[1:])

STEMS: dict[str, Stem] = {
    "imagenet": Stem(_ONE, usual_pool),
    "deep": Stem(_DEEP, usual_pool),
    "tiered": Stem(_TIERED, usual_pool),
    "rs": Stem(_DEEP, conv_pool),
    "bit": Stem(_ONE, zero_padded_pool),
    # For small images (He et al. 2015, section 4.2).
    "cifar": Stem((StemConv(3),)),
}
