"""What each block of a spec is, all numbers known."""

from typing import TYPE_CHECKING, NamedTuple

from resflax.nn.blocks import BLOCKS, BlockGeometry, ConvRow
from resflax.nn.stems import STEMS

if TYPE_CHECKING:
    from resflax.nn.spec import Spec


class FeatureInfo(NamedTuple):
    """A map of features: its name, its channels, and by how much it is smaller than the image."""

    name: str
    channels: int
    stride: int


class Block(NamedTuple):
    """One block of a spec, all numbers known.

    Attributes:
      layers: its branch.
      channels: of each layer.
      width: the channels of its output before any pruning.
      scale: its stride and dilation.
    """

    layers: tuple[ConvRow, ...]
    channels: tuple[int, ...]
    width: int
    scale: BlockGeometry


def plan(spec: "Spec") -> list[list[Block]]:
    """The blocks of each stage of a spec.

    A stage that may not stride (`output_stride`) is dilated instead; its first block still sees
    what lies before at the dilation of that, as in timm and torchvision.
    """
    stages, dilation = [], 1
    shrunk = 2 ** STEMS[spec.stem].halvings
    for i, (depth, width) in enumerate(zip(spec.depths, spec.widths, strict=True)):
        layers, stride, before = BLOCKS[spec.blocks[i]], 2 if i else 1, dilation
        if shrunk >= spec.output_stride:
            stride, dilation = 1, dilation * stride
        shrunk *= stride
        inner = width * spec.base_width // 64 * spec.groups
        channels = tuple(
            (inner if layer.expansion is None else width * layer.expansion) // layer.divisor
            for layer in layers
        )
        rest = Block(layers, channels, channels[-1], BlockGeometry(1, dilation, dilation))
        first = rest._replace(scale=BlockGeometry(stride, before, dilation))
        stages.append([first] + [rest] * (depth - 1))
    if spec.pruned is None:
        return stages
    return [
        [block._replace(channels=kept) for block, kept in zip(blocks, keeps, strict=True)]
        for blocks, keeps in zip(stages, spec.pruned, strict=True)
    ]
