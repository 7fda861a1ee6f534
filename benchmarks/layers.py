"""Layers of a network and their floating-point operations, computed from the spec alone.

This uses none of resflax's code, so that tests can check each against the other.
"""

from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

# Convolutions of a branch: kernel size, output channels per unit of width, has the block's stride.
BLOCKS = {
    "basic": ((3, 1, True), (3, 1, False)),
    "bottleneck": ((1, 1, False), (3, 1, True), (1, 4, False)),
    "bottleneck_v1": ((1, 1, True), (3, 1, False), (1, 4, False)),
}


# Kernel and stride of the stem's convolution, and whether a 3x3 max pooling of stride 2 follows.
STEMS: dict[str, tuple[Any, Any, bool]] = {
    "imagenet": (7, 2, True),
    "cifar": (3, 1, False),
    "cifar_stride2": (3, 2, False),
    "video": ((3, 7, 7), (1, 2, 2), False),
}
Shape = tuple[int, ...]


class ConvLayer(NamedTuple):
    """A convolution, or the head as a convolution of one pixel with a kernel of size 1.

    Attributes:
      name: module path of the kernel in resflax.
      kernel: kernel size along each axis.
      cin: number of input channels.
      cout: number of output channels.
      sides: sizes of the spatial axes of the output.
      norm: module path of the batch norm that follows; "" for the head.
    """

    name: str
    kernel: Shape
    cin: int
    cout: int
    sides: Shape
    norm: str

    @property
    def flops(self) -> int:
        """Operations of a forward pass per image: two per kernel tap, padding included."""
        return 2 * prod(self.kernel) * self.cin * self.cout * prod(self.sides)


def per_axis(value: int | Shape, dimensions: int) -> Shape:
    """Returns one number per spatial axis."""
    return (value,) * dimensions if isinstance(value, int) else value


def _strided(sides: Shape, stride: int | Shape) -> Shape:
    strides = per_axis(stride, len(sides))
    # Odd kernel k, padding k // 2.
    return tuple((side - 1) // s + 1 for side, s in zip(sides, strides, strict=True))


def _block(
    spec: dict[str, Any], name: str, cin: int, width: int, sides: Shape, stride: int
) -> Iterator[ConvLayer]:
    channels, out_sides, dimensions = cin, _strided(sides, stride), len(sides)
    for i, (kernel, expansion, strided) in enumerate(BLOCKS[spec["block"]], start=1):
        sides = out_sides if strided else sides
        cout, norm = width * expansion, f"{name}/norm{i}"
        size = per_axis(kernel, dimensions)
        yield ConvLayer(f"{name}/conv{i}", size, channels, cout, sides, norm)
        channels = cout
    if spec["shortcut"] == "B" and (stride == 2 or cin != channels):
        ones = (1,) * dimensions
        yield ConvLayer(f"{name}/Ws", ones, cin, channels, out_sides, f"{name}/Ws_norm")


def layers(spec: dict[str, Any], sides: Shape, channels: int = 3) -> list[ConvLayer]:
    """Returns the convolutions and the head of a network, in order.

    Args:
      spec: fields of a `resflax.nn.Spec`.
      sides: sizes of the spatial axes of the images: height and width, for example.
      channels: number of image channels.
    """
    (kernel, stride, pools), dimensions = STEMS[spec["stem"]], len(sides)
    sides, cin = _strided(sides, stride), spec["stem_width"]
    size = per_axis(kernel, dimensions)
    result = [ConvLayer("stem_conv", size, channels, cin, sides, "stem_norm")]
    if pools:
        sides = _strided(sides, 2)
    for i, (depth, width) in enumerate(zip(spec["depths"], spec["widths"], strict=True), start=1):
        for j in range(1, depth + 1):
            stride = 2 if i > 1 and j == 1 else 1
            result += _block(spec, f"stage{i}_block{j}", cin, width, sides, stride)
            sides = _strided(sides, stride)
            cin = width * BLOCKS[spec["block"]][-1][1]
    ones = (1,) * dimensions
    return [*result, ConvLayer("head", ones, cin, spec["num_classes"], ones, "")]


def forward_flops(network: list[ConvLayer]) -> int:
    """Returns the operations of a forward pass per image."""
    return sum(layer.flops for layer in network)


def train_flops(network: list[ConvLayer]) -> int:
    """Returns the operations of a training step per image: forward, dgrad and wgrad.

    The first layer has no dgrad, because the gradient of the images is not needed.
    """
    return 3 * forward_flops(network) - network[0].flops
