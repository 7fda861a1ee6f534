"""The ONNX operators that compute each operation of the inference form.

Feature maps are `(n, channels, height, width)` in ONNX, and kernels `(out, in, height, width)`.
"""

from collections.abc import Callable

import numpy as np

from resflax.export.onnx_activations import ACTIVATIONS
from resflax.export.onnx_writer import OnnxWriter
from resflax.inference import Node

LARGEST_INDEX = np.iinfo(np.int64).max


def write_node(writer: OnnxWriter, node: Node, name: str) -> None:
    """Adds the ONNX nodes that compute `node`; the last one's result is called `name`."""
    inputs = [writer.result(i) for i in node.inputs]
    activation = node.attributes.get("activation", "none")
    linear = name if activation == "none" else f"{name}/linear"
    OPERATORS[node.op](writer, node, linear, *inputs)
    if activation != "none":
        ACTIVATIONS[activation](writer, name, linear)
    writer.set_result(node, name)


def _normalize(writer: OnnxWriter, node: Node, name: str, x: str) -> None:
    from onnx import TensorProto

    x = writer.emit("Cast", f"{name}/float", x, to=TensorProto.FLOAT)
    x = writer.emit("Div", f"{name}/unit", x, writer.constant(f"{name}/255", np.float32(255)))
    for operator, leaf in (("Sub", "mean"), ("Div", "std")):
        array = writer.constant(f"{name}/{leaf}_array", node.arrays[leaf])
        x = writer.emit(operator, f"{name}/{leaf}", x, array)
    writer.emit("Transpose", name, x, perm=[0, 3, 1, 2])


def _conv(writer: OnnxWriter, node: Node, name: str, x: str, *residual: str) -> None:
    attributes, kernel = node.attributes, node.arrays["kernel"]
    parameters = [writer.constant(f"{node.name}/kernel", kernel.transpose(3, 2, 0, 1))]
    if "bias" in node.arrays:
        parameters.append(writer.constant(f"{node.name}/bias", node.arrays["bias"]))
    convolved = writer.emit(
        "Conv",
        f"{name}/conv" if residual else name,
        x,
        *parameters,
        kernel_shape=kernel.shape[:2],
        strides=[attributes["stride"]] * 2,
        pads=[attributes["padding"]] * 4,
        dilations=[attributes["dilation"]] * 2,
        group=attributes["groups"],
    )
    if residual:
        writer.emit("Add", name, convolved, *residual)


def _affine(writer: OnnxWriter, node: Node, name: str, x: str) -> None:
    scale, bias = (
        writer.per_channel(f"{node.name}/{leaf}", node.arrays[leaf]) for leaf in ("scale", "bias")
    )
    writer.emit("Add", name, writer.emit("Mul", f"{name}/scaled", x, scale), bias)


def _batch_norm(writer: OnnxWriter, node: Node, name: str, x: str) -> None:
    arrays = (
        writer.constant(f"{node.name}/{leaf}", node.arrays[leaf])
        for leaf in ("scale", "bias", "mean", "var")
    )
    writer.emit("BatchNormalization", name, x, *arrays, epsilon=node.attributes["epsilon"])


def _group_norm(writer: OnnxWriter, node: Node, name: str, x: str) -> None:
    # GroupNormalization has a scale per group before opset 21, so instance norm over groups.
    groups = node.attributes["groups"]
    grouped = writer.reshape(f"{name}/grouped", x, [0, groups, -1])
    one = writer.constant(f"{name}/one", np.ones(groups, np.float32))
    zero = writer.constant(f"{name}/zero", np.zeros(groups, np.float32))
    epsilon = node.attributes["epsilon"]
    normed = writer.emit(
        "InstanceNormalization", f"{name}/grouped_norm", grouped, one, zero, epsilon=epsilon
    )
    shape = writer.emit("Shape", f"{name}/shape", x)
    _affine(writer, node, name, writer.emit("Reshape", f"{name}/norm", normed, shape))


def _evonorm_s0(writer: OnnxWriter, node: Node, name: str, x: str) -> None:
    v = writer.per_channel(f"{node.name}/v", node.arrays["v"])
    gate = writer.emit("Sigmoid", f"{name}/gate", writer.emit("Mul", f"{name}/scaled_by_v", x, v))
    gated = writer.emit("Mul", f"{name}/gated", x, gate)
    std = _group_std(writer, node, name, x)
    _affine(writer, node, name, writer.emit("Div", f"{name}/norm", gated, std))


def _group_std(writer: OnnxWriter, node: Node, name: str, x: str) -> str:
    """Adds the standard deviation of each group, repeated for its channels: `(n, c, 1, 1)`."""
    groups = node.attributes["groups"]
    grouped = writer.reshape(f"{name}/grouped", x, [0, groups, -1])
    mean = writer.reduce_mean(f"{name}/group_mean", grouped, [2])
    centered = writer.emit("Sub", f"{name}/centered", grouped, mean)
    square = writer.emit("Mul", f"{name}/square", centered, centered)
    std = _root(writer, node, name, writer.reduce_mean(f"{name}/var", square, [2]))
    repeats = writer.constant(f"{name}/repeats", [1, 1, len(node.arrays["scale"]) // groups])
    tiled = writer.emit("Tile", f"{name}/tiled_std", std, repeats)
    return writer.reshape(f"{name}/channel_std", tiled, [0, -1, 1, 1])


def _root(writer: OnnxWriter, node: Node, name: str, square: str) -> str:
    epsilon = writer.constant(f"{name}/epsilon", np.float32(node.attributes["epsilon"]))
    positive = writer.emit("Add", f"{name}/positive", square, epsilon)
    return writer.emit("Sqrt", f"{name}/root", positive)


def _filter_response_norm(writer: OnnxWriter, node: Node, name: str, x: str) -> None:
    square = writer.emit("Mul", f"{name}/square", x, x)
    mean = writer.reduce_mean(f"{name}/mean_square", square, [2, 3])
    normed = writer.emit("Div", f"{name}/norm", x, _root(writer, node, name, mean))
    if "tau" not in node.arrays:
        return _affine(writer, node, name, normed)
    _affine(writer, node, f"{name}/affine", normed)
    tau = writer.per_channel(f"{node.name}/tau", node.arrays["tau"])
    writer.emit("Max", name, f"{name}/affine", tau)
    return None


def _max_pool(writer: OnnxWriter, node: Node, name: str, x: str) -> None:
    padding, window = node.attributes["padding"], node.attributes["window"]
    if node.attributes["zero_padding"]:
        pads = writer.constant(f"{name}/pads", [0, 0, padding, padding] * 2)
        x, padding = writer.emit("Pad", f"{name}/padded", x, pads), 0
    strides = [node.attributes["stride"]] * 2
    writer.emit("MaxPool", name, x, kernel_shape=[window] * 2, strides=strides, pads=[padding] * 4)


def _avg_pool(writer: OnnxWriter, node: Node, name: str, x: str) -> None:
    ceil_mode = 1
    if node.attributes["same"]:
        pads = writer.constant(f"{name}/pads", [0, 0, 0, 0, 0, 0, 1, 1])
        x, ceil_mode = writer.emit("Pad", f"{name}/padded", x, pads), 0
    strides = [node.attributes["stride"]] * 2
    writer.emit(
        "AveragePool",
        name,
        x,
        kernel_shape=[2, 2],
        strides=strides,
        ceil_mode=ceil_mode,
        count_include_pad=0,
    )


def _blur(writer: OnnxWriter, node: Node, name: str, x: str) -> None:
    channels, taps = writer.channels[node.inputs[0]], np.array([0.25, 0.5, 0.25], np.float32)
    kernel = np.tile(np.outer(taps, taps), (channels, 1, 1, 1))
    pads = writer.constant(f"{name}/pads", [0, 0, 1, 1] * 2)
    padded = writer.emit("Pad", f"{name}/padded", x, pads, mode="reflect")
    weight = writer.constant(f"{name}/kernel", kernel)
    strides = [node.attributes["stride"]] * 2
    writer.emit("Conv", name, padded, weight, kernel_shape=[3, 3], strides=strides, group=channels)


def _zero_pad(writer: OnnxWriter, node: Node, name: str, x: str) -> None:
    stride, before, after = (node.attributes[key] for key in ("stride", "before", "after"))
    if stride > 1:
        index = {
            "starts": [0, 0],
            "ends": [LARGEST_INDEX] * 2,
            "axes": [2, 3],
            "steps": [stride] * 2,
        }
        indices = (writer.constant(f"{name}/{key}", value) for key, value in index.items())
        x = writer.emit("Slice", f"{name}/subsampled", x, *indices)
    writer.emit("Pad", name, x, writer.constant(f"{name}/pads", [0, before, 0, 0, 0, after, 0, 0]))


def _gate(writer: OnnxWriter, node: Node, name: str, x: str, gate: str, *residual: str) -> None:
    gate = writer.reshape(f"{node.name}/channels", gate, [0, -1, 1, 1])
    gated = writer.emit("Mul", f"{name}/gated" if residual else name, x, gate)
    if residual:
        writer.emit("Add", name, gated, *residual)


def _mean(writer: OnnxWriter, node: Node, name: str, x: str) -> None:
    pooled = writer.emit("GlobalAveragePool", f"{name}/pooled", x)
    writer.emit("Flatten", name, pooled, axis=1)


def _dense(writer: OnnxWriter, node: Node, name: str, x: str) -> None:
    arrays = (
        writer.constant(f"{node.name}/{leaf}", node.arrays[leaf]) for leaf in ("kernel", "bias")
    )
    writer.emit("Gemm", name, x, *arrays)


def _channel_conv(writer: OnnxWriter, node: Node, name: str, x: str) -> None:
    kernel = node.arrays["kernel"]
    weight = writer.constant(f"{node.name}/kernel", kernel[None, None])
    row = writer.reshape(f"{name}/row", x, [0, 1, -1])
    pads = [len(kernel) // 2] * 2
    convolved = writer.emit(
        "Conv", f"{name}/conv", row, weight, kernel_shape=kernel.shape, pads=pads
    )
    writer.emit("Flatten", name, convolved, axis=1)


# `(writer, node, name, *inputs)` for each row of `resflax.inference.OPS`: adds the ONNX nodes that
# compute the node without its activation, as the result `name`.
OPERATORS: dict[str, Callable[..., None]] = {
    "normalize": _normalize,
    "conv": _conv,
    "affine": _affine,
    "batch_norm": _batch_norm,
    "group_norm": _group_norm,
    "evonorm_s0": _evonorm_s0,
    "filter_response_norm": _filter_response_norm,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "blur": _blur,
    "zero_pad": _zero_pad,
    "add": lambda writer, node, name, x, y: writer.emit("Add", name, x, y),
    "gate": _gate,
    "mean": _mean,
    "dense": _dense,
    "channel_conv": _channel_conv,
    "softmax": lambda writer, node, name, x: writer.emit("Softmax", name, x, axis=-1),
}
