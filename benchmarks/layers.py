"""Layers of a network and their floating-point operations, computed from the spec alone.

This uses none of resflax's code, so that tests can check each against the other.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

# Convolutions of a branch: kernel size, output channels per unit of width, has the block's stride.
BLOCKS = {
    "basic": ((3, 1, True), (3, 1, False)),
    "bottleneck": ((1, 1, False), (3, 1, True), (1, 4, False)),
    "bottleneck_v1": ((1, 1, True), (3, 1, False), (1, 4, False)),
}


class ConvLayer(NamedTuple):
    """A convolution, or the head as a 1x1 convolution of one pixel.

    Attributes:
      name: module path of the kernel in resflax.
      kernel: kernel size.
      cin: number of input channels.
      cout: number of output channels.
      side: height and width of the output.
      norm: module path of the batch norm that follows; "" for the head.
    """

    name: str
    kernel: int
    cin: int
    cout: int
    side: int
    norm: str

    @property
    def flops(self) -> int:
        """Operations of a forward pass per image: two per kernel tap, padding included."""
        return 2 * self.kernel**2 * self.cin * self.cout * self.side**2


def _stride_2(side: int) -> int:
    return (side - 1) // 2 + 1  # odd kernel k, padding k // 2


def _block(
    spec: dict[str, Any], name: str, cin: int, width: int, side: int, stride: int
) -> Iterator[ConvLayer]:
    channels, out_side = cin, _stride_2(side) if stride == 2 else side
    for i, (kernel, expansion, strided) in enumerate(BLOCKS[spec["block"]], start=1):
        side = out_side if strided else side
        cout = width * expansion
        yield ConvLayer(f"{name}/conv{i}", kernel, channels, cout, side, f"{name}/norm{i}")
        channels = cout
    if spec["shortcut"] == "B" and (stride == 2 or cin != channels):
        yield ConvLayer(f"{name}/Ws", 1, cin, channels, out_side, f"{name}/Ws_norm")


def layers(spec: dict[str, Any], size: int, channels: int = 3) -> list[ConvLayer]:
    """Returns the convolutions and the head of a network, in order.

    Args:
      spec: fields of a `resflax.nn.Spec`.
      size: height and width of the images.
      channels: number of image channels.
    """
    if spec["stem"] == "imagenet":
        side, kernel = _stride_2(size), 7
    else:
        side, kernel = size, 3
    cin = spec["stem_width"]
    result = [ConvLayer("stem_conv", kernel, channels, cin, side, "stem_norm")]
    if spec["stem"] == "imagenet":
        side = _stride_2(side)  # max-pool
    for i, (depth, width) in enumerate(zip(spec["depths"], spec["widths"], strict=True), start=1):
        for j in range(1, depth + 1):
            stride = 2 if i > 1 and j == 1 else 1
            result += _block(spec, f"stage{i}_block{j}", cin, width, side, stride)
            side = _stride_2(side) if stride == 2 else side
            cin = width * BLOCKS[spec["block"]][-1][1]
    return [*result, ConvLayer("head", 1, cin, spec["num_classes"], 1, "")]


def forward_flops(network: list[ConvLayer]) -> int:
    """Returns the operations of a forward pass per image."""
    return sum(layer.flops for layer in network)


def train_flops(network: list[ConvLayer]) -> int:
    """Returns the operations of a training step per image: forward, dgrad and wgrad.

    The first layer has no dgrad, because the gradient of the images is not needed.
    """
    return 3 * forward_flops(network) - network[0].flops
