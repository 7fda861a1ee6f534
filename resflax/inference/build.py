"""The inference form of a spec and its variables."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from resflax.errors import UserError, unknown
from resflax.inference.graph import Graph
from resflax.inference.layers import GraphBuilder
from resflax.inference.parameters import Parameters
from resflax.inference.parts import ATTENTIONS, BLOCK_FILTERS, SHORTCUT_NODES, STEM_POOLS
from resflax.inference.whole import missing_part, output_size, whole_network
from resflax.nn import BlockConfig, Spec
from resflax.nn.fields import resolve
from resflax.nn.gates import input_scales
from resflax.nn.layers import Sizes, per_axis
from resflax.nn.orders import ACT, NORM_ACT

OUTPUTS = ("logits", "probabilities", "features")


def build_graph(
    spec: Spec,
    variables: Any,
    *,
    outputs: str = "logits",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    scale_and_bias: tuple[Any, Any] | None = None,
    test_pool: tuple[int, int] | None = None,
    fold: bool = True,
    dtype: Any = np.float32,
) -> Graph:
    """Returns the inference form of a network: `model.apply(variables, x, train=False)` as nodes.

    Batch norm is folded into the convolution before it; where there is none, as at the start of a
    pre-activation block, it becomes an affine map. The sum with the shortcut and the activation
    that follows become attributes of the branch's last convolution. The arithmetic on parameters is
    in float64. A network with parts that have no operation, such as functions of the user's own, or
    of signals or volumes, is one node "network".

    Args:
      spec: the architecture.
      variables: its variables, stacked or not, with NumPy or JAX arrays.
      outputs: "logits", "probabilities" (their softmax), or "features", which are the pooled
        features before the head.
      mean: per-channel mean for pixel values from 0 to 1. With `mean` and `std` the graph also
        accepts raw uint8 images.
      std: per-channel standard deviation, likewise.
      scale_and_bias: arrays `(channels,)` of an affine map of normalized images, which is applied
        to them first, as for a network that takes images with another normalization.
      test_pool: height and width of the images that the network was trained on, for larger ones:
        each window of a training image's feature map is classified, and the logits of an image are
        half the mean plus half the maximum over its windows (timm's `TestTimePoolHead`).
      fold: whether to fold batch norm. If False, its arrays are kept in `batch_norm` nodes.
      dtype: dtype of the arrays: float32, or float64 for comparisons.

    Raises:
      UserError: if the spec has an ensemble, the variables are not those of the spec, `outputs` is
        unknown, the network has no head and `outputs` needs one, `mean` and `std` do not fit the
        images' channels, or there is no operation for `test_pool`.

    >>> import jax
    >>> from resflax.zoo import create_model
    >>> model, image = create_model("cifar_resnet8"), np.zeros((1, 32, 32, 3), np.float32)
    >>> shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
    >>> zeros = jax.tree.map(lambda array: np.zeros(array.shape), shapes)
    >>> graph = build_graph(model.spec, zeros)
    >>> [node.name for node in graph.nodes][:3]
    ['stem_conv', 'stage1_block1/conv1', 'stage1_block1/conv2']
    >>> node = graph.nodes[2]
    >>> node.op, node.inputs, node.attributes["activation"], sorted(node.arrays)
    ('conv', ('stage1_block1/conv1', 'stem_conv'), 'relu', ['bias', 'kernel'])
    """
    _check_spec(spec, outputs)
    parameters = Parameters(variables)
    builder = GraphBuilder(spec, parameters, fold=fold, dtype=dtype)
    x, channels = Graph.input, _image_channels(spec, parameters, mean)
    if mean is not None or std is not None:
        x = builder.normalize(x, mean, std, channels)
    if scale_and_bias is not None:
        arrays = dict(zip(("scale", "bias"), map(np.asarray, scale_and_bias), strict=True))
        x = builder.emit("affine", "renormalize", x, arrays=arrays, activation="none")
    if test_pool:
        check_test_pool(spec, outputs)
    if missing_part(spec):
        attributes = whole_network(spec, outputs)
        x = builder.emit("network", "network", x, arrays=parameters.arrays, **attributes)
        features = output_size(spec, outputs)
    else:
        x, features = _layers(builder, x, outputs, test_pool)
    if outputs == "probabilities":
        x = builder.emit("softmax", "probabilities", x)
    return Graph(builder.nodes, x, channels, features, dimensions=spec.dimensions)


def _layers(
    builder: GraphBuilder, x: str, outputs: str, test_pool: tuple[int, int] | None
) -> tuple[str, int]:
    """Emits all layers; returns the result and its features."""
    spec = builder.spec
    x, features = _stages(builder, _stem(builder, x))
    x = builder.steps(x, spec.order_row.pre, "head_norm")
    if test_pool:
        stride = _side(spec.features[-1].stride)
        window = tuple(-(-side // stride) for side in test_pool)
        x, features = builder.test_pool(x, "head", window), spec.num_classes
    else:
        x = builder.emit("mean", "pool", x)
    if outputs != "features" and not test_pool:
        x, features = builder.dense(x, "head"), spec.num_classes
    builder.parameters.check_all_read(ignore="head" if outputs == "features" else "")
    return x, features


def check_test_pool(spec: Spec, outputs: str = "logits") -> None:
    """Raises `UserError` if a network has no operation for `test_pool`."""
    if reason := missing_part(spec):
        raise UserError(
            f"test-time pooling needs a network of images with pooling 'avg' and shipped parts, not"
            f" {reason}: leave it out"
        )
    if outputs == "features":
        raise UserError("test-time pooling has no pooled features: use outputs='logits'")


def _check_spec(spec: Spec, outputs: str) -> None:
    """Checks that the inference form has everything that the network has."""
    if not isinstance(spec, Spec):
        raise UserError(
            f"spec is a {type(spec).__name__}: expected a Spec, such as the attribute spec of a"
            " ResNet"
        )
    if spec.ensemble != "none":
        raise UserError(
            f"spec.ensemble is {spec.ensemble!r}, and the inference form is of single networks:"
            " build one per member, from spec.member and resflax.nn.split_members"
        )
    if outputs not in OUTPUTS:
        raise unknown("outputs", outputs, OUTPUTS)
    if outputs != "features" and not spec.num_classes:
        raise UserError(
            f"outputs is {outputs!r}, but the network has no head (num_classes is 0):"
            " use outputs='features'"
        )


def _image_channels(spec: Spec, parameters: Parameters, mean: Sequence[float] | None) -> int:
    """Returns the number of channels that the first convolution reads.

    Those of a stem of the user's own follow from the normalization; without one it is 0, for any.
    """
    if resolve("stem", spec.stem).function:
        return len(mean or ())
    name = "stem_conv" if len(resolve("stem", spec.stem).convs) == 1 else "stem_conv1"
    return int(parameters.get(name, "kernel").shape[-2])


def _side(sizes: Sizes) -> int:
    """Returns the size along each of the two axes, which are alike in a network of images."""
    side, other = per_axis(sizes, 2)
    assert side == other, sizes
    return side


def _stem(builder: GraphBuilder, x: str) -> str:
    """Emits convolutions and pooling of the stem."""
    spec, stem = builder.spec, resolve("stem", builder.spec.stem)
    last = len(stem.convs)
    for i, row in enumerate(stem.convs, start=1):
        number = i if last > 1 else ""
        steps = spec.order_row.stem if i == last else NORM_ACT
        norm = f"stem_norm{number}" if "norm" in steps else None
        x = builder.conv(
            x,
            f"stem_conv{number}",
            (_side(row.kernel), int(spec.stem_width * row.width_fraction)),
            norm=norm,
            act="act" in steps,
            stride=_side(row.stride),
        )
    return STEM_POOLS[stem.pool](builder, x) if stem.pool else x


def _stages(builder: GraphBuilder, x: str) -> tuple[str, int]:
    """Emits all blocks; returns the result and its channels."""
    spec, channels = builder.spec, builder.spec.stem_width
    alpha = resolve("gate", spec.gate).alpha
    scales = input_scales(spec.depths, alpha) if alpha else [[1.0] * n for n in spec.depths]
    for i, blocks in enumerate(spec.stages, start=1):
        for j, block in enumerate(blocks, start=1):
            scale = scales[i - 1][j - 1]
            x = _block(builder, f"stage{i}_block{j}", block, x, channels, scale)
            channels = block.channels[-1]
    return x, channels


def _block(
    builder: GraphBuilder,
    name: str,
    block: BlockConfig,
    x: str,
    channels: int,
    input_scale: float,
) -> str:
    """Emits one residual block, in its order."""
    spec, order = builder.spec, builder.spec.order_row
    row = resolve("shortcut", spec.shortcut)
    h = builder.steps(x, order.pre, f"{name}/norm1")
    merge = h != x  # otherwise the shortcut reads `h` as well
    h = builder.scale(h, input_scale, channels, f"{name}/input_scale", merge=merge)
    y = ATTENTIONS[spec.attention](builder, name, _branch(builder, name, block, h))
    shortcut: str | None = None
    if row.make is not None:
        out_channels, stride = block.channels[-1], block.geometry.stride
        differs = row.always or stride > 1 or channels != out_channels
        make = SHORTCUT_NODES[spec.shortcut]
        shortcut = make(builder, name, block.geometry, h, channels, out_channels) if differs else x
        y, shortcut = _gate(builder, name, y, shortcut, out_channels)
    x = builder.finish(y, shortcut, f"{name}/add", act=order.post == ACT)
    number = order.post_norm_number(len(block.rows))
    return x if order.post == ACT else builder.steps(x, order.post, f"{name}/norm{number}")


def _gate(
    builder: GraphBuilder, name: str, y: str, shortcut: str, channels: int
) -> tuple[str, str]:
    """Emits the factors of branch and shortcut."""
    gate = resolve("gate", builder.spec.gate)
    factors = gate.factors(builder.parameters.module(f"{name}/gate"))
    y = builder.scale(y, factors.branch, channels, f"{name}/branch_scale", merge=True)
    return y, builder.scale(shortcut, factors.shortcut, channels, f"{name}/shortcut_scale")


def _branch(builder: GraphBuilder, name: str, block: BlockConfig, x: str) -> str:
    """Emits the branch, as `resflax.nn.blocks.apply_branch`."""
    spec, geometry, last = builder.spec, block.geometry, len(block.rows)
    dilation = geometry.in_dilation
    for i, (row, features) in enumerate(zip(block.rows, block.channels, strict=True), start=1):
        filtered = row.strided and geometry.strides_or_dilates and i < last
        downsample = BLOCK_FILTERS[spec.antialias] if filtered else None
        steps = NORM_ACT if i < last else spec.order_row.last
        norm = f"{name}/norm{spec.order_row.norm_number(i)}"
        x = builder.conv(
            x,
            f"{name}/conv{i}",
            (_side(row.kernel), features),
            norm=norm if "norm" in steps else None,
            act="act" in steps,
            stride=geometry.stride if row.strided and not downsample else 1,
            dilation=dilation,
            groups=spec.groups if row.grouped else 1,
        )
        dilation = geometry.dilation if row.strided else dilation
        x = downsample(builder, x, f"{name}/downsample", geometry.stride) if downsample else x
    return x
