"""The layers of a network by pure arithmetic, and the floating-point operations they cost.

This knows nothing of resflax's own code: names, shapes and counts are worked out a second time, so
that each can be checked against the other.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

# A branch: kernel, channels in multiples of the width, whether it takes the block's stride.
BLOCKS = {
    "basic": ((3, 1, True), (3, 1, False)),
    "bottleneck": ((1, 1, False), (3, 1, True), (1, 4, False)),
    "bottleneck_v1": ((1, 1, True), (3, 1, False), (1, 4, False)),
}


class Layer(NamedTuple):
    """A convolution, or the head as a convolution of one pixel.

    Attributes:
      name: of the kernel's module, in resflax's naming.
      kernel: its side.
      cin: channels in.
      cout: channels out.
      side: of the output image.
      norm: the name of the batch norm behind it; "" behind the head.
    """

    name: str
    kernel: int
    cin: int
    cout: int
    side: int
    norm: str

    @property
    def flops(self) -> int:
        """Of one image forward: a multiplication and an addition for each tap, padding included."""
        return 2 * self.kernel**2 * self.cin * self.cout * self.side**2


def _halved(side: int) -> int:
    return (side - 1) // 2 + 1  # odd kernel, padded by half of it, stride 2


def _block(
    spec: dict[str, Any], name: str, cin: int, width: int, side: int, stride: int
) -> Iterator[Layer]:
    rows, channels = BLOCKS[spec["block"]], cin
    after = _halved(side) if stride == 2 else side
    for i, (kernel, expansion, strided) in enumerate(rows, start=1):
        side = after if strided else side
        cout = width * expansion
        yield Layer(f"{name}/conv{i}", kernel, channels, cout, side, f"{name}/norm{i}")
        channels = cout
    if spec["shortcut"] == "B" and (stride == 2 or cin != channels):
        yield Layer(f"{name}/Ws", 1, cin, channels, after, f"{name}/Ws_norm")


def layers(spec: dict[str, Any], size: int, channels: int = 3) -> list[Layer]:
    """Every layer that multiplies, in order, of a spec's fields on images of `size`."""
    if spec["stem"] == "imagenet":
        side, kernel = _halved(size), 7
    else:
        side, kernel = size, 3
    width = spec["stem_width"]
    rows = [Layer("stem_conv", kernel, channels, width, side, "stem_norm")]
    if spec["stem"] == "imagenet":
        side = _halved(side)  # the maximum
    for i, (depth, stage) in enumerate(zip(spec["depths"], spec["widths"], strict=True), start=1):
        for j in range(1, depth + 1):
            stride = 2 if i > 1 and j == 1 else 1
            rows += _block(spec, f"stage{i}_block{j}", width, stage, side, stride)
            side = _halved(side) if stride == 2 else side
            width = stage * BLOCKS[spec["block"]][-1][1]
    return [*rows, Layer("head", 1, width, spec["num_classes"], 1, "")]


def forward_flops(rows: list[Layer]) -> int:
    """Of one image through the network."""
    return sum(row.flops for row in rows)


def train_flops(rows: list[Layer]) -> int:
    """Of one image in a step: forward, and the gradients of kernels and inputs.

    Nobody needs the gradient of the images, so the first layer counts twice and not thrice.
    """
    return 3 * forward_flops(rows) - rows[0].flops
