"""A model in ONNX that is being written: nodes, constants, and what they are called."""

from typing import Any

import numpy as np

from resflax.inference import Node

# Opset from which ReduceMean takes its axes as an input.
REDUCE_AXES_AS_INPUT = 18


class OnnxWriter:
    """ONNX nodes and initializers of a model that is being written.

    Attributes:
      opset: version of the operators.
      channels: number of channels of each result of the inference form.
      nodes: the ONNX nodes.
      initializers: the constant tensors.
    """

    def __init__(self, opset: int, channels: dict[str, int]) -> None:
        self.opset, self.channels = opset, dict(channels)
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._results: dict[str, str] = {name: name for name in channels}

    def constant(self, name: str, array: Any) -> str:
        """Adds a constant tensor; returns its name."""
        from onnx import numpy_helper

        # A Python or NumPy integer stands for an index or a size.
        array = np.asarray(array)
        dtype = np.float32 if array.dtype.kind == "f" else np.int64
        self.initializers.append(numpy_helper.from_array(np.asarray(array, dtype, "C"), name))
        return name

    def emit(self, operator: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one result, called `name`; returns its name."""
        from onnx import helper

        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def reduce_mean(self, name: str, x: str, axes: list[int]) -> str:
        """Adds a mean over `axes`, which remain as axes of size 1."""
        if self.opset < REDUCE_AXES_AS_INPUT:
            return self.emit("ReduceMean", name, x, axes=axes, keepdims=1)
        return self.emit("ReduceMean", name, x, self.constant(f"{name}/axes", axes), keepdims=1)

    def reshape(self, name: str, x: str, shape: list[int]) -> str:
        """Adds a reshape; 0 keeps the size of an axis, -1 is inferred."""
        return self.emit("Reshape", name, x, self.constant(f"{name}/shape", shape))

    def per_channel(self, name: str, vector: np.ndarray) -> str:
        """Adds a vector that broadcasts over feature maps."""
        return self.constant(name, vector[:, None, None])

    def result(self, name: str) -> str:
        """Returns the ONNX name of a result of the inference form."""
        return self._results[name]

    def set_result(self, node: Node, name: str) -> None:
        """Records the ONNX name, and the channels, of a node's result."""
        self._results[node.name] = name
        channels = self.channels[node.inputs[0]]
        if node.op in ("conv", "dense"):
            channels = node.arrays["kernel"].shape[-1]
        elif node.op == "zero_pad":
            channels += node.attributes["before"] + node.attributes["after"]
        self.channels[node.name] = channels
