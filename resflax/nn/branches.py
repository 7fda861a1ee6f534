"""The branch F of a block, as data: a row of convolutions that one function runs.

Basic and bottleneck blocks are those of He et al. 2015, figure 5.
"""

from typing import NamedTuple

import jax

from resflax.nn.ops import Ops

Array = jax.Array


class Layer(NamedTuple):
    """One convolution of a branch.

    Attributes:
      kernel: its side, in pixels.
      expansion: its channels, in multiples of the block's width.
      strided: whether it takes the block's stride.
    """

    kernel: int
    expansion: int = 1
    strided: bool = False


BRANCHES: dict[str, tuple[Layer, ...]] = {
    "basic": (Layer(3, strided=True), Layer(3)),
    # "v1.5": the stride on the 3x3, as fb.resnet.torch, torchvision and timm have it.
    "bottleneck": (Layer(1), Layer(3, strided=True), Layer(1, expansion=4)),
    # v1: the stride on the first 1x1, as in the paper.
    "bottleneck_v1": (Layer(1, strided=True), Layer(3), Layer(1, expansion=4)),
}


def run_branch(
    ops: Ops,
    layers: tuple[Layer, ...],
    x: Array,
    *,
    width: int,
    stride: int,
    preact: bool = False,
    zero_init: bool = False,
) -> Array:
    """Runs `layers` on `x`: norm and activation between the convolutions.

    Post-activation (v1) ends on a norm without an activation. Pre-activation (v2) ends on a
    convolution; the norm and activation before the first are the block's own `pre`, so its norms
    count from 2. `zero_init` starts the last of them at zero: the norm's scale (Goyal et al. 2017,
    section 5.1) or the kernel (timm), so that the branch begins as zero.
    """
    last = len(layers)
    for i, layer in enumerate(layers, start=1):
        s = stride if layer.strided else 1
        zero = zero_init and i == last
        x = ops.conv(
            x, layer.expansion * width, layer.kernel, s, name=f"conv{i}", zero=zero and preact
        )
        if i < last:
            x = ops.act(ops.norm(x, name=f"norm{i + 1 if preact else i}"))
        elif not preact:
            x = ops.norm(x, name=f"norm{i}", zero=zero)
    return x
