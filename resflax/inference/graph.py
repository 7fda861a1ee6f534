"""The inference form of a network: a list of operations with their arrays.

A `Graph` is a network in evaluation mode for one set of weights. `build_graph` makes it from a
`Spec` and its variables, with batch norm folded into the convolutions and weight standardization
applied. Everything that runs or writes a network in evaluation mode reads this form: the JAX
executor, the oneDNN executor and the ONNX export.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class Node(NamedTuple):
    """One operation.

    Attributes:
      op: a name in `OPS`.
      name: unique name, also that of the result: the path of the module that holds the parameters
        ("stage1_block1/conv1"), or a path of the same form for operations without parameters.
      inputs: names of the nodes whose results are read, or the graph's input.
      attributes: static attributes, as listed in `OPS`.
      arrays: arrays by name, as listed in `OPS`.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Graph:
    """Operations in an order in which each one follows those that it reads.

    Attributes:
      nodes: the operations.
      output: name of the node whose result is the network's.
      channels: number of image channels; 0 if only the network itself knows it.
      features: size of the output's last axis; 0 if only the network itself knows it.
      input: name by which nodes read the images, `(n, *space, channels)`.
      dimensions: number of their spatial axes.
    """

    nodes: tuple[Node, ...]
    output: str
    channels: int
    features: int
    input: str = "image"
    dimensions: int = 2

    @property
    def arrays(self) -> dict[str, dict[str, np.ndarray]]:
        """Arrays by the name of their node and their own; nodes without arrays are omitted."""
        return {node.name: dict(node.arrays) for node in self.nodes if node.arrays}


class Op(NamedTuple):
    """Row of `OPS`: what an executor computes for a node.

    Attributes:
      result: the result, in terms of the inputs (x first), attributes and arrays.
      attributes: names of the attributes.
      arrays: names of the arrays.
      optional_arrays: names of arrays that a node can lack.
      optional_input: name of a second or last input that a node can lack.
    """

    result: str
    attributes: tuple[str, ...] = ()
    arrays: tuple[str, ...] = ()
    optional_arrays: tuple[str, ...] = ()
    optional_input: str = ""


# What each operation of a graph computes.
# Feature maps are (n, height, width, channels), pooled features (n, channels). All per-channel
# arrays are vectors. Windows are square, and all sizes, strides and paddings are integers, in
# pixels, the same for both axes and all sides. `activation` is applied last: "none", a name
# in `resflax.nn.ACTIVATIONS` or, for pooled features, "sigmoid". An executor may round feature maps
# to a compute dtype, but computes means, variances and everything on pooled features in float32.
OPS: dict[str, Op] = {
    "normalize": Op(
        "(x / 255 - mean) / std if x is uint8; floating-point images are already normalized and"
        " are returned unchanged",
        arrays=("mean", "std"),
    ),
    "conv": Op(
        "convolution (cross-correlation) with the kernel (height, width, channels in per group,"
        " channels out) and `padding` zeros on each side, plus bias, plus residual",
        attributes=("stride", "padding", "dilation", "groups", "activation"),
        arrays=("kernel",),
        optional_arrays=("bias",),
        optional_input="residual",
    ),
    "affine": Op(
        "x * scale + bias per channel", attributes=("activation",), arrays=("scale", "bias")
    ),
    "batch_norm": Op(
        "(x - mean) / sqrt(var + epsilon) * scale + bias per channel; only in graphs built with"
        " fold=False",
        attributes=("epsilon", "activation"),
        arrays=("scale", "bias", "mean", "var"),
    ),
    "group_norm": Op(
        "(x - mean) / sqrt(var + epsilon) * scale + bias, with mean and variance of each image over"
        " all pixels of each of `groups` groups of channels",
        attributes=("groups", "epsilon", "activation"),
        arrays=("scale", "bias"),
    ),
    "evonorm_s0": Op(
        "x * sigmoid(v * x) / sqrt(var + epsilon) * scale + bias, with the variance as in"
        " group_norm",
        attributes=("groups", "epsilon", "activation"),
        arrays=("scale", "bias", "v"),
    ),
    "filter_response_norm": Op(
        "max(x / sqrt(mean(x^2) + epsilon) * scale + bias, tau), with the mean over each image's"
        " pixels, per channel; without tau, no maximum",
        attributes=("epsilon", "activation"),
        arrays=("scale", "bias"),
        optional_arrays=("tau",),
    ),
    "max_pool": Op(
        "maximum over windows, after padding each side by `padding` pixels: of zeros if"
        " `zero_padding`, else of -inf",
        attributes=("window", "stride", "padding", "zero_padding"),
    ),
    "avg_pool": Op(
        "mean over 2x2 windows that start at each stride-th pixel, the last row and column"
        " included. If `same`, pixels beyond the image are zeros that count in the mean (stride 1,"
        " the image's size is kept). Else they do not count, and the sizes of the result are"
        " size / stride, rounded up",
        attributes=("stride", "same"),
    ),
    "blur": Op(
        "depthwise convolution with the outer product of (1, 2, 1) / 4, after padding each side by"
        " one pixel by reflection (without repeating the edge)",
        attributes=("stride",),
    ),
    "zero_pad": Op(
        "every stride-th pixel of both axes, with `before` and `after` channels of zeros around"
        " those of x",
        attributes=("stride", "before", "after"),
    ),
    "add": Op("x + second input", attributes=("activation",)),
    "gate": Op(
        "x * second input (n, channels), broadcast over the pixels, plus residual",
        attributes=("activation",),
        optional_input="residual",
    ),
    "mean": Op("mean over all pixels: (n, channels)"),
    "dense": Op(
        "x @ kernel (features in, features out) + bias",
        attributes=("activation",),
        arrays=("kernel", "bias"),
    ),
    "channel_conv": Op(
        "convolution (cross-correlation) of pooled features along the channels with the kernel"
        " (taps,), an odd number of taps, and taps // 2 zeros on both sides",
        attributes=("activation",),
        arrays=("kernel",),
    ),
    "test_pool": Op(
        "(mean + max) / 2 over all windows of `window` pixels (height, width) of their means"
        " @ kernel (features in, features out) + bias; only in graphs built with `test_pool`",
        attributes=("window",),
        arrays=("kernel", "bias"),
    ),
    "softmax": Op("softmax over the last axis"),
    "network": Op(
        "all layers of the network with this spec, without operations of their own. The arrays are"
        " the variables by their paths",
        attributes=("spec",),
    ),
}
# Operations that the JAX executor alone has.
JAX_ONLY = ("network", "test_pool")
