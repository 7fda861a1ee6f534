"""Runs a `Graph` in JAX: any platform, batch and image size, under every transform."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Shaped

from resflax.inference.graph import Graph, Node
from resflax.inference.whole import run_network
from resflax.kernels.conv import conv_general_dilated
from resflax.kernels.materialize import materialize
from resflax.kernels.pool import avg_pool, avg_pool_same, blur_pool, every_nth, max_pool
from resflax.nn.activations import identity
from resflax.nn.field_table import SHIPPED
from resflax.nn.norms import group_std

Arrays = dict[str, dict[str, Any]]
# Names of the spatial axes, by their number.
SPACE = {1: "length", 2: "height, width", 3: "depth, height, width"}
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    **SHIPPED["activation"],
    "none": identity,
    "sigmoid": jax.nn.sigmoid,
}


def apply_graph(
    graph: Graph,
    arrays: Arrays,
    images: Shaped[Array, "n *space channels"],
    *,
    dtype: Any = jnp.float32,
) -> Float[Array, "n features"]:
    """Runs the nodes of `graph` on a batch of images.

    Works under `jit`, `grad`, `vmap` (over images, arrays or both, as for ensembles), `shard_map`,
    and `jit` over a mesh that shards the batch.

    Args:
      graph: the operations. Its own arrays are not used.
      arrays: arrays with the tree of `graph.arrays`.
      images: normalized images `(n, *space, channels)`, or raw uint8 ones if the graph normalizes.
      dtype: dtype of convolutions and feature maps. Pooled features and logits are float32, or
        float64 if `dtype` is.

    Raises:
      ValueError: as `check_images`.
    """
    check_images(graph, images)
    if images.dtype != jnp.uint8:
        images = images.astype(dtype)
    reads = Counter(name for node in graph.nodes for name in node.inputs)
    results = {graph.input: images}
    for node in graph.nodes:
        inputs = [results[name] for name in node.inputs]
        result = OPERATIONS[node.op](node, arrays.get(node.name, {}), dtype, *inputs)
        # XLA:CPU would compute a block's output for each reader, and with it all earlier blocks'.
        results[node.name] = materialize(result) if reads[node.name] > 1 else result
    return results[graph.output]


def check_images(graph: Graph, images: Any) -> None:
    """Checks that a graph can read a batch of images.

    Raises:
      ValueError: if the images have another number of axes or channels, or are neither floating
        point nor uint8 in a graph that normalizes.
    """
    if images.ndim != graph.dimensions + 2 or graph.channels not in (0, images.shape[-1]):
        space = SPACE[graph.dimensions]
        raise ValueError(
            f"expected images of shape (n, {space}, {graph.channels}): got {images.shape}"
        )
    normalizes = graph.nodes[0].op == "normalize"
    if not jnp.issubdtype(images.dtype, jnp.floating) and not (
        normalizes and images.dtype == jnp.uint8
    ):
        raw = ", or raw uint8 images" if normalizes else "; raw uint8 images need mean and std"
        raise ValueError(
            f"images are {images.dtype}: expected normalized floating-point images{raw}"
        )


def pooled_dtype(dtype: Any) -> Any:
    """Returns the dtype of statistics and pooled features for a compute dtype."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def _activate(node: Node, x: Array) -> Array:
    return ACTIVATIONS[node.attributes["activation"]](x)


def _normalize(node: Node, arrays: Any, dtype: Any, x: Array) -> Array:
    if x.dtype != jnp.uint8:
        return x
    mean, std = (arrays[name].astype(pooled_dtype(dtype)) for name in ("mean", "std"))
    return ((x.astype(mean.dtype) / 255 - mean) / std).astype(dtype)


def _conv(node: Node, arrays: Any, dtype: Any, x: Array, *residual: Array) -> Array:
    attributes = node.attributes
    y = conv_general_dilated(
        x,
        arrays["kernel"].astype(dtype),
        (attributes["stride"],) * 2,
        ((attributes["padding"],) * 2,) * 2,
        rhs_dilation=(attributes["dilation"],) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=attributes["groups"],
    )
    if "bias" in arrays:
        y = y + arrays["bias"].astype(dtype)
    return _activate(node, sum(residual, start=y))


def _affine(node: Node, arrays: Any, dtype: Any, x: Array) -> Array:
    scale, bias = (arrays[name].astype(pooled_dtype(dtype)) for name in ("scale", "bias"))
    return _activate(node, x.astype(scale.dtype) * scale + bias).astype(dtype)


def _batch_norm(node: Node, arrays: Any, dtype: Any, x: Array) -> Array:
    scale, bias, mean, var = (
        arrays[name].astype(pooled_dtype(dtype)) for name in ("scale", "bias", "mean", "var")
    )
    x = (x.astype(scale.dtype) - mean) * lax.rsqrt(var + node.attributes["epsilon"])
    return _activate(node, x * scale + bias).astype(dtype)


def _group_norm(node: Node, arrays: Any, dtype: Any, x: Array) -> Array:
    scale, bias = (arrays[name].astype(pooled_dtype(dtype)) for name in ("scale", "bias"))
    n, height, width, channels = x.shape
    groups = node.attributes["groups"]
    x = x.astype(scale.dtype)
    grouped = x.reshape(n, height, width, groups, channels // groups)
    mean = jnp.repeat(jnp.mean(grouped, (1, 2, 4)), channels // groups, -1)[:, None, None]
    x = (x - mean) / group_std(x, node.attributes["epsilon"])
    return _activate(node, x * scale + bias).astype(dtype)


def _evonorm_s0(node: Node, arrays: Any, dtype: Any, x: Array) -> Array:
    scale, bias, v = (arrays[name].astype(pooled_dtype(dtype)) for name in ("scale", "bias", "v"))
    x = x.astype(scale.dtype)
    x = x * jax.nn.sigmoid(x * v) / group_std(x, node.attributes["epsilon"])
    return _activate(node, x * scale + bias).astype(dtype)


def _filter_response_norm(node: Node, arrays: Any, dtype: Any, x: Array) -> Array:
    scale, bias = (arrays[name].astype(pooled_dtype(dtype)) for name in ("scale", "bias"))
    x = x.astype(scale.dtype)
    square = jnp.mean(jnp.square(x), (1, 2), keepdims=True)
    x = x * lax.rsqrt(square + node.attributes["epsilon"]) * scale + bias
    if "tau" in arrays:
        x = jnp.maximum(x, arrays["tau"].astype(x.dtype))
    return _activate(node, x).astype(dtype)


def _max_pool(node: Node, arrays: Any, dtype: Any, x: Array) -> Array:
    padding, attributes = node.attributes["padding"], node.attributes
    if attributes["zero_padding"]:
        x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        padding = 0
    return max_pool(x, window=attributes["window"], stride=attributes["stride"], padding=padding)


def _avg_pool(node: Node, arrays: Any, dtype: Any, x: Array) -> Array:
    return avg_pool_same(x) if node.attributes["same"] else avg_pool(x, node.attributes["stride"])


def _zero_pad(node: Node, arrays: Any, dtype: Any, x: Array) -> Array:
    stride = node.attributes["stride"]
    widths = (node.attributes["before"], node.attributes["after"])
    return jnp.pad(every_nth(x, (1, stride, stride)), ((0, 0), (0, 0), (0, 0), widths))


def _gate(node: Node, arrays: Any, dtype: Any, x: Array, gate: Array, *residual: Array) -> Array:
    return _activate(node, sum(residual, start=x * gate.astype(dtype)[:, None, None]))


def _mean(node: Node, arrays: Any, dtype: Any, x: Array) -> Array:
    return jnp.mean(x, (1, 2), dtype=pooled_dtype(dtype))


def _dense(node: Node, arrays: Any, dtype: Any, x: Array) -> Array:
    kernel, bias = (arrays[name].astype(x.dtype) for name in ("kernel", "bias"))
    return _activate(node, x @ kernel + bias)


def _test_pool(node: Node, arrays: Any, dtype: Any, x: Array) -> Array:
    window, space = node.attributes["window"], x.shape[1:3]
    if any(size < side for size, side in zip(space, window, strict=True)):
        raise ValueError(
            f"the feature map of {space[0]}x{space[1]} is smaller than the windows of test-time"
            f" pooling, {window[0]}x{window[1]}: expected images of the training size or larger"
        )
    x = x.astype(pooled_dtype(dtype))
    sums = lax.reduce_window(x, 0.0, lax.add, (1, *window, 1), (1, 1, 1, 1), "VALID")
    kernel, bias = (arrays[name].astype(x.dtype) for name in ("kernel", "bias"))
    logits = sums / (window[0] * window[1]) @ kernel + bias
    return (jnp.mean(logits, (1, 2)) + jnp.max(logits, (1, 2))) / 2


def _channel_conv(node: Node, arrays: Any, dtype: Any, x: Array) -> Array:
    kernel, channels = arrays["kernel"].astype(x.dtype), x.shape[-1]
    side = len(kernel) // 2
    padded = jnp.pad(x, ((0, 0), (side, side)))
    taps = (padded[:, i : i + channels] * kernel[i] for i in range(2 * side + 1))
    return _activate(node, sum(taps, start=jnp.zeros_like(x)))


# `(node, arrays, dtype, *inputs) -> result` of each row of `OPS`.
OPERATIONS: dict[str, Callable[..., Array]] = {
    "network": run_network,
    "normalize": _normalize,
    "conv": _conv,
    "affine": _affine,
    "batch_norm": _batch_norm,
    "group_norm": _group_norm,
    "evonorm_s0": _evonorm_s0,
    "filter_response_norm": _filter_response_norm,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "blur": lambda node, arrays, dtype, x: blur_pool(x, node.attributes["stride"]),
    "zero_pad": _zero_pad,
    "add": lambda node, arrays, dtype, x, y: _activate(node, x + y),
    "gate": _gate,
    "mean": _mean,
    "dense": _dense,
    "test_pool": _test_pool,
    "channel_conv": _channel_conv,
    "softmax": lambda node, arrays, dtype, x: jax.nn.softmax(x),
}
