"""The branch F of a block, as data: a row of convolutions that one function runs.

Basic and bottleneck blocks are those of He et al. 2015, figure 5; grouped ones those of Xie et al.
2016 (ResNeXt, arXiv:1611.05431), figure 3c.
"""

from typing import NamedTuple

import jax

from resflax.nn.antialias import AntiAlias
from resflax.nn.layers import Ops

Array = jax.Array


class ConvRow(NamedTuple):
    """One convolution of a branch.

    Attributes:
      kernel: its side, in pixels.
      expansion: its channels, in multiples of the stage's width; None for the block's inner width.
      strided: whether it takes the block's stride.
      grouped: whether it takes the network's groups.
      divisor: of its channels.
    """

    kernel: int
    expansion: int | None = None
    strided: bool = False
    grouped: bool = False
    divisor: int = 1


BLOCKS: dict[str, tuple[ConvRow, ...]] = {
    "basic": (ConvRow(3, strided=True), ConvRow(3, expansion=1)),
    # "v1.5": the stride on the 3x3, as fb.resnet.torch, torchvision and timm have it.
    "bottleneck": (ConvRow(1), ConvRow(3, strided=True, grouped=True), ConvRow(1, expansion=4)),
    # v1: the stride on the first 1x1, as in the paper.
    "bottleneck_v1": (ConvRow(1, strided=True), ConvRow(3, grouped=True), ConvRow(1, expansion=4)),
    # SENet-154: the first 1x1 half as wide (Hu et al. 2017, arXiv:1709.01507, appendix).
    "bottleneck_senet": (
        ConvRow(1, divisor=2),
        ConvRow(3, strided=True, grouped=True),
        ConvRow(1, expansion=4),
    ),
}


class BlockGeometry(NamedTuple):
    """How a block moves over the image.

    Attributes:
      stride: of its strided layer, in pixels.
      before: the dilation at which its input lies; its strided layer's.
      dilation: of the layers after that one.
    """

    stride: int = 1
    before: int = 1
    dilation: int = 1

    @property
    def changes(self) -> bool:
        """Whether the block looks at the image at another scale than the one before it."""
        return self.stride > 1 or self.before != self.dilation


def apply_branch(
    ops: Ops,
    layers: tuple[ConvRow, ...],
    x: Array,
    *,
    channels: tuple[int, ...],
    scale: BlockGeometry,
    antialias: AntiAlias,
    groups: int = 1,
    preact: bool = False,
    zero_init: bool = False,
) -> Array:
    """Runs `layers`, of so many `channels`, on `x`: norm and activation between the convolutions.

    Post-activation (v1) ends on a norm without an activation. Pre-activation (v2) ends on a
    convolution; the norm and activation before the first are the block's own `pre`, so its norms
    count from 2. `zero_init` starts the last of them at zero: the norm's scale (Goyal et al. 2017,
    section 5.1) or the kernel (timm), so that the branch begins as zero. With `antialias.down` the
    strided layer leaves its stride to that, after its activation (Zhang 2019).
    """
    last, dilation = len(layers), scale.before
    for i, (layer, features) in enumerate(zip(layers, channels, strict=True), start=1):
        down = antialias.down if layer.strided and scale.changes and i < last else None
        zero = zero_init and i == last
        x = ops.conv(
            x,
            features,
            layer.kernel,
            scale.stride if layer.strided and not down else 1,
            name=f"conv{i}",
            groups=groups if layer.grouped else 1,
            dilation=dilation,
            zero=zero and preact,
        )
        if layer.strided:
            dilation = scale.dilation
        if i < last:
            x = ops.norm_act(x, name=f"norm{i + 1 if preact else i}")
        elif not preact:
            x = ops.norm(x, name=f"norm{i}", zero=zero)
        x = down(x, scale.stride) if down else x
    return x
