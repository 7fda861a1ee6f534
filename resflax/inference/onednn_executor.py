"""Runs a graph on CPUs by oneDNN, as one call."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from resflax.inference.graph import OPS, Graph
from resflax.inference.whole import missing_part
from resflax.kernels import network, onednn

# In the order of `Op` in kernels/network/program.h.
NETWORK_OPS = (
    *("normalize", "conv", "affine", "group_norm", "evonorm_s0", "filter_response_norm"),
    *("max_pool", "avg_pool", "blur", "zero_pad", "add", "gate", "mean", "dense"),
    *("channel_conv", "softmax"),
)
# In the order of `Activation` there.
ACTIVATIONS = ("none", "relu", "sigmoid")
DTYPES = ("float32", "bfloat16")


def onednn_reason_against(graph: Graph, dtype: Any) -> str | None:
    """Returns why oneDNN cannot run `graph` here, in one line, or None if it can."""
    for node in graph.nodes:
        if node.op == "network":
            return f"oneDNN's executor has no {missing_part(node.attributes['spec'])}"
    unknown_ops = {node.op for node in graph.nodes} - {*NETWORK_OPS}
    if unknown_ops:
        return f"oneDNN's executor lacks the operation {min(unknown_ops)}"
    activations = {node.attributes.get("activation", "none") for node in graph.nodes}
    if unknown_activations := activations - {*ACTIVATIONS}:
        return f"oneDNN's executor lacks the activation {min(unknown_activations)}"
    if jnp.dtype(dtype).name not in DTYPES:
        return f"oneDNN's executor computes in {' or '.join(DTYPES)}, not in {dtype}"
    if jax.default_backend() != "cpu":
        return f"oneDNN runs on CPUs only, and JAX's platform is {jax.default_backend()}"
    if jax.process_count() > 1:
        return "oneDNN's executor cannot read arrays of several processes"
    reason = network.unavailable_reason()
    if reason is None and not onednn.supports(dtype):
        return f"this CPU has no instructions for {dtype}"
    return reason


class OneDnnExecutor:
    """A graph whose calls run in oneDNN. Weights are laid out at the first call of a size.

    Args:
      graph: the network.
      dtype: of convolution kernels and feature maps, float32 or bfloat16.
    """

    def __init__(self, graph: Graph, dtype: Any) -> None:
        code, arrays = encode(graph)
        self._network = network.Network(
            code,
            arrays,
            channels=graph.channels,
            features=graph.features,
            bfloat16=jnp.dtype(dtype) == jnp.bfloat16,
        )

    def __call__(self, images: Any) -> Float[Array, "n features"]:
        """Returns the outputs of a batch as float32."""
        return jnp.asarray(self._network(np.asarray(images)))


def encode(graph: Graph) -> tuple[list[float], list[np.ndarray]]:
    """Returns a graph as `Program` in kernels/network/program.h reads it, and its arrays."""
    indices = {graph.input: 0}
    code: list[float] = []
    arrays: list[np.ndarray] = []
    for i, node in enumerate(graph.nodes, start=1):
        inputs = [indices[name] for name in node.inputs]
        row = OPS[node.op]
        attributes = [_number(node.attributes[key]) for key in row.attributes]
        names = (*row.arrays, *row.optional_arrays)
        present = [name for name in names if name in node.arrays]
        places = {name: len(arrays) + k for k, name in enumerate(present)}
        arrays += [node.arrays[name] for name in present]
        code.append(NETWORK_OPS.index(node.op))
        for values in (inputs, attributes, [places.get(name, -1) for name in names]):
            code += [len(values), *values]
        indices[node.name] = i
    assert graph.nodes[-1].name == graph.output
    return code, arrays


def _number(value: Any) -> float:
    return float(ACTIVATIONS.index(value) if isinstance(value, str) else value)
