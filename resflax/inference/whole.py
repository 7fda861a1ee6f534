"""A network as one operation, where it has parts that the inference form does not describe."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Float

from resflax.errors import UserError, quantity
from resflax.inference.graph import Node
from resflax.nn import ResNet, Spec
from resflax.nn.fields import resolve
from resflax.nn.functions import describe


def missing_part(spec: Spec) -> str | None:
    """Returns the part of a network that the inference form does not describe, or None.

    That is every row that is not as the library ships it, since the builder knows them by their
    names, and another number of dimensions than two.
    """
    if spec.dimensions != 2:
        return f"convolutions of {quantity(spec.dimensions, 'dimension')}"
    for field, part in spec.own_parts.items():
        return f"{field} {describe(part)}"
    for value, block in zip(spec.block_values, spec.blocks, strict=True):
        if not callable(block) and not all(isinstance(row.kernel, int) for row in block):
            return f"block {describe(value)}, with kernels of one size per axis,"
    if resolve("gate", spec.gate).factors is None:
        return f"gate {spec.gate!r}"
    return None if spec.pooling == "avg" else f"pooling {spec.pooling!r}"


def whole_network(spec: Spec, outputs: str) -> dict[str, Any]:
    """Returns the attributes of the node "network"."""
    return {"spec": spec.override(num_classes=0) if outputs == "features" else spec}


def output_size(spec: Spec, outputs: str) -> int:
    """Returns the size of the last axis of a network's outputs; 0 if only its own part knows it."""
    if outputs == "features":
        if "pooling" in spec.own_parts:
            return 0
        return spec.features[-1].channels * (2 if spec.pooling == "catavgmax" else 1)
    return 0 if "head" in spec.own_parts else spec.num_classes


def run_network(
    node: Node, arrays: Any, dtype: Any, x: Float[Array, "n *space channels"]
) -> Float[Array, "n features"]:
    """Returns the network's outputs in evaluation mode, in float32 (float64 if `dtype` is).

    Raises:
      UserError: if they are not one array.
    """
    spec: Spec = node.attributes["spec"]
    model: nn.Module = ResNet(spec, dtype=dtype)
    y = model.apply(traverse_util.unflatten_dict(dict(arrays), sep="/"), x, train=False)
    if not isinstance(y, jax.Array) or y.ndim != 2:
        raise UserError(
            f"head {describe(spec.head)} returns {jax.tree.map(jnp.shape, y)}: expected logits"
            " (n, num_classes) for predictions; use model.apply for other outputs"
        )
    return y.astype(jnp.float64 if dtype == jnp.float64 else jnp.float32)
