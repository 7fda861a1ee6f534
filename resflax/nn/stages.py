"""Blocks and feature maps of each stage: channels, strides and dilations from a spec's fields."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from resflax.nn.blocks import Block, BlockConfig, BlockGeometry
from resflax.nn.layers import Sizes

Stages = tuple[tuple[BlockConfig, ...], ...]
Pruned = tuple[tuple[tuple[int, ...], ...], ...]


class FeatureInfo(NamedTuple):
    """Name, channels and stride (image size over map size) of a feature map.

    The stride is one per axis where they differ, as of clips.
    """

    name: str
    channels: int
    stride: Sizes


def make_stages(
    depths: Sequence[int],
    widths: Sequence[int],
    blocks: Sequence[Block],
    *,
    groups: int,
    base_width: int,
    stem_width: int,
    stem_stride: int,
    output_stride: int,
) -> Stages:
    """Returns the blocks of each stage.

    Where `output_stride` forbids a stride, the stage is dilated instead. As in timm and
    torchvision, its first block still reads its input at the dilation of the previous stage.

    Args:
      depths: number of blocks in each stage.
      widths: channels of each stage's blocks before expansion.
      blocks: branch of each stage: rows of convolutions, or a function.
      groups: see `Spec`.
      base_width: see `Spec`.
      stem_width: channels after the stem.
      stem_stride: stride of the stem's output, along the axis where it is largest.
      output_stride: largest stride of a feature map.
    """
    stages, inputs, stride, dilation = [], stem_width, stem_stride, 1
    for i, (depth, width, block) in enumerate(zip(depths, widths, blocks, strict=True)):
        stage_stride, in_dilation = 2 if i else 1, dilation
        if stride >= output_stride:
            stage_stride, dilation = 1, dilation * stage_stride
        stride *= stage_stride
        inner = width * base_width // 64 * groups
        make = partial(_make_block, block, width=width, inner=inner)
        first = make(inputs, BlockGeometry(stage_stride, in_dilation, dilation))
        inputs = first.width
        rest = make(inputs, BlockGeometry(1, dilation, dilation))
        stages.append((first, *[rest] * (depth - 1)))
    return tuple(stages)


def _make_block(
    block: Block, inputs: int, geometry: BlockGeometry, *, width: int, inner: int
) -> BlockConfig:
    if callable(block):
        return BlockConfig((), (width,), width, geometry, block)
    channels = tuple(row.out_channels(inputs, width, inner) for row in block)
    return BlockConfig(block, channels, channels[-1], geometry)


def prune(stages: Stages, pruned: Pruned) -> Stages:
    """Returns the blocks with other numbers of channels, those of each convolution."""
    return tuple(
        tuple(block._replace(channels=channels) for block, channels in zip(*stage, strict=True))
        for stage in zip(stages, pruned, strict=True)
    )


def repeat_channels(stages: Stages, times: int) -> Stages:
    """Returns the blocks with `times` as many channels in every convolution."""

    def repeat(block: BlockConfig) -> BlockConfig:
        channels = tuple(times * number for number in block.channels)
        return block._replace(channels=channels, width=times * block.width)

    return tuple(tuple(map(repeat, stage)) for stage in stages)
