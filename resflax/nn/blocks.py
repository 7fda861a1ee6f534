"""The branch F of a residual block, as a table of convolutions that one function runs.

Basic and bottleneck blocks are those of He et al. 2015 (arXiv:1512.03385), figure 5, grouped ones
those of Xie et al. 2016 (ResNeXt, arXiv:1611.05431), figure 3c.
"""

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

from jaxtyping import Array, Float

from resflax.nn.activations import identity
from resflax.nn.antialias import ANTIALIAS, AntiAlias
from resflax.nn.layers import Ops, Sizes, per_axis
from resflax.nn.orders import NORM, NORM_ACT, ORDERS, Order, apply_steps


class ConvRow(NamedTuple):
    """One convolution of a branch.

    Attributes:
      kernel: side of the kernel, in pixels, or one size per spatial axis.
      expansion: output channels as a multiple of the stage's width. None for the block's inner
        width, which also depends on `Spec.base_width` and `Spec.groups`.
      strided: whether this convolution has the block's stride; with one kernel size per axis, along
        the axes where it is larger than 1.
      grouped: whether this convolution is split into `Spec.groups` groups.
      divisor: number by which the output channels are divided.
      factored: whether this convolution and the next are the factors of a 3x3x3 convolution. The
        first has as many output channels as give both its number of weights (Tran et al. 2018,
        arXiv:1711.11248, section 3.5).
    """

    kernel: Sizes
    expansion: int | None = None
    strided: bool = False
    grouped: bool = False
    divisor: int = 1
    factored: bool = False

    def out_channels(self, inputs: int, width: int, inner: int) -> int:
        """Returns the output channels.

        Args:
          inputs: channels of the block's input.
          width: width of the stage.
          inner: inner width of the block.
        """
        if self.factored:
            return 27 * inputs * width // (9 * inputs + 3 * width)
        return (inner if self.expansion is None else width * self.expansion) // self.divisor

    def strides(self, stride: int) -> Sizes:
        """Returns this convolution's stride in a block with a stride."""
        if not self.strided or isinstance(self.kernel, int):
            return stride if self.strided else 1
        return tuple(stride if size > 1 else 1 for size in self.kernel)


# A branch: convolutions, or a function `(ops, x, features, stride) -> x`.
Block = tuple[ConvRow, ...] | Callable[..., Array]

_SPATIAL, _TEMPORAL = (1, 3, 3), (3, 1, 1)
# Convolutions of the branch of a block.
BLOCKS: dict[str, tuple[ConvRow, ...]] = {
    # Two 3x3 convolutions (He et al. 2015, figure 5, left).
    "basic": (ConvRow(3, strided=True), ConvRow(3, expansion=1)),
    # Figure 5, right, as "v1.5": stride on the 3x3 convolution, as in fb.resnet.torch, torchvision
    # and timm.
    "bottleneck": (ConvRow(1), ConvRow(3, strided=True, grouped=True), ConvRow(1, expansion=4)),
    # Bottleneck v1: stride on the first 1x1 convolution, as in the paper.
    "bottleneck_v1": (ConvRow(1, strided=True), ConvRow(3, grouped=True), ConvRow(1, expansion=4)),
    # SENet-154: half the channels in the first 1x1 (Hu et al. 2017, arXiv:1709.01507, appendix).
    "bottleneck_senet": (
        ConvRow(1, divisor=2),
        ConvRow(3, strided=True, grouped=True),
        ConvRow(1, expansion=4),
    ),
    # Of clips, without the axis of time (Tran et al. 2018, arXiv:1711.11248).
    "basic_spatial": (ConvRow(_SPATIAL, strided=True), ConvRow(_SPATIAL, expansion=1)),
    # Of clips, in two factors, of space and time (R(2+1)D, in the same paper).
    "basic_2plus1d": (
        ConvRow(_SPATIAL, strided=True, factored=True),
        ConvRow(_TEMPORAL, expansion=1, strided=True),
        ConvRow(_SPATIAL, factored=True),
        ConvRow(_TEMPORAL, expansion=1),
    ),
}


class BlockGeometry(NamedTuple):
    """Stride and dilation of a block.

    Attributes:
      stride: stride of the block's strided convolution, in pixels.
      in_dilation: dilation of the incoming feature map, used up to and including the strided
        convolution.
      dilation: dilation of the convolutions after the strided one.
    """

    stride: int = 1
    in_dilation: int = 1
    dilation: int = 1

    @property
    def strides_or_dilates(self) -> bool:
        """Whether the block has a stride, or a larger dilation in place of one."""
        return self.stride > 1 or self.in_dilation != self.dilation


class BlockConfig(NamedTuple):
    """One block of a `Spec`, with all numbers resolved.

    Attributes:
      rows: convolutions of the branch.
      channels: output channels of each convolution.
      width: output channels of the block before pruning.
      geometry: stride and dilation.
      function: `(ops, x, features, stride) -> x` in place of `rows`, which are then empty.
    """

    rows: tuple[ConvRow, ...]
    channels: tuple[int, ...]
    width: int
    geometry: BlockGeometry
    function: Callable[..., Array] | None = None

    def strides(self, dimensions: int) -> tuple[int, ...]:
        """Returns the block's stride along each axis."""
        if self.function:
            return per_axis(self.geometry.stride, dimensions)
        strides = [per_axis(row.strides(self.geometry.stride), dimensions) for row in self.rows]
        return tuple(map(prod, zip(*strides, strict=True)))


def apply_branch(
    ops: Ops,
    block: BlockConfig,
    x: Float[Array, "n *space channels"],
    *,
    antialias: AntiAlias = ANTIALIAS["none"],
    groups: int = 1,
    order: Order = ORDERS["original"],
    zero_init: bool = False,
    drop: Callable[[Array], Array] = identity,
) -> Float[Array, "n *out_space out_channels"]:
    """Runs the convolutions of `block`, with a norm and an activation between them.

    Call it in a compact scope: it makes the modules `conv1`, `norm1`, `conv2` and so on.

    Args:
      ops: operations of this call of the network.
      block: the convolutions, their channels, stride and dilation.
      x: the images. In a pre-activation block, already normalized and activated.
      antialias: a row of `ANTIALIAS`. With `antialias.downsample`, the strided convolution has
        stride 1 and the downsampling follows its activation (Zhang 2019, arXiv:1904.11486).
      groups: groups of the grouped convolutions.
      order: a row of `ORDERS`: what follows the last convolution. If the block itself begins with
        a norm, `norm1`, those of the branch are numbered from 2.
      zero_init: initialize the last norm's scale (Goyal et al. 2017, section 5.1) or, where no norm
        follows it, the last kernel (timm) to zero, so that the branch is zero at the start. Without
        effect if an activation ends the branch: its gradient would stay zero.
      drop: applied between the norm and the activation that precede the last convolution (timm's
        place of DropBlock), in every order; after a norm that has an activation of its own.

    The row "bottleneck", unrolled:

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> from resflax.nn.layers import make_ops
    >>> ops = make_ops(train=False, dtype=jnp.float32)
    >>> def unrolled(x):
    ...     x = ops.conv(x, 8, kernel=1, name="conv1")
    ...     x = nn.relu(ops.norm(x, name="norm1"))
    ...     x = ops.conv(x, 8, kernel=3, stride=2, name="conv2")
    ...     x = nn.relu(ops.norm(x, name="norm2"))
    ...     x = ops.conv(x, 32, kernel=1, name="conv3")
    ...     return ops.norm(x, name="norm3")
    >>> block = BlockConfig(BLOCKS["bottleneck"], (8, 8, 32), 32, BlockGeometry(stride=2))
    >>> def from_table(x):
    ...     return apply_branch(ops, block, x)

    Both have the same parameters and the same output:

    >>> key, x = jax.random.key(0), jnp.ones((2, 6, 6, 32))
    >>> a, b = (nn.Sequential([f]).init_with_output(key, x) for f in (unrolled, from_table))
    >>> jax.tree.all(jax.tree.map(jnp.array_equal, a, b)), b[0].shape
    (True, (2, 3, 3, 32))
    """
    geometry, last = block.geometry, len(block.rows)
    if block.function:
        return block.function(ops, x, block.channels[-1], geometry.stride)
    dilation = geometry.in_dilation
    for i, (row, features) in enumerate(zip(block.rows, block.channels, strict=True), start=1):
        filtered = row.strided and geometry.strides_or_dilates and i < last
        downsample = antialias.downsample if filtered else None
        zero = zero_init and i == last and order.last != NORM_ACT
        stride = 1 if downsample else row.strides(geometry.stride)
        fields: dict[str, Any] = {"name": f"conv{i}", "dilation": dilation}
        fields["groups"] = groups if row.grouped else 1
        if row.strided:
            dilation = geometry.dilation
        norm_name = f"norm{order.norm_number(i)}"
        if i == last and order.last == NORM:
            return ops.conv_norm(
                x, features, row.kernel, stride, norm_name=norm_name, zero=zero, **fields
            )
        x = ops.conv(x, features, row.kernel, stride, zero=zero, **fields)
        if i < last:
            between = drop if i == last - 1 else identity
            x = ops.norm_act(x, name=norm_name, between=between)
        else:
            x = apply_steps(ops, order.last, x, name=norm_name)
        x = downsample(ops, x, geometry.stride) if downsample else x
    return x
