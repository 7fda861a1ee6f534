"""Emits the nodes of a network's layers: convolution and norm, dense, gate, residual sum."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from resflax.errors import UserError
from resflax.inference.fold import Affine, batch_norm_affine, standardize
from resflax.inference.graph import Node
from resflax.inference.parameters import Parameters
from resflax.nn import Spec
from resflax.nn.fields import resolve
from resflax.nn.norms import GROUPS, EvoNormS0, FilterResponseNorm
from resflax.nn.orders import Steps
from resflax.nn.scaled_conv import gamma_of

GROUP_NORM_EPSILON = 1e-5
# What a residual sum can be merged into: the operations with an optional input "residual".
SUMMING_OPS = ("conv", "gate")


class GraphBuilder:
    """Builder of a graph's nodes. Each method emits a layer and returns the name of its result.

    Attributes:
      spec: the architecture.
      parameters: its variables.
      fold: whether batch norm is folded.
      dtype: dtype to which the nodes' arrays are rounded.
    """

    def __init__(self, spec: Spec, parameters: Parameters, *, fold: bool, dtype: Any) -> None:
        self.spec, self.parameters, self.fold, self.dtype = spec, parameters, fold, dtype
        self._nodes: dict[str, Node] = {}

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes so far."""
        return tuple(self._nodes.values())

    def emit(
        self,
        op: str,
        name: str,
        *inputs: str,
        arrays: Mapping[str, np.ndarray] | None = None,
        **attributes: Any,
    ) -> str:
        """Adds a node."""
        assert name not in self._nodes, name
        rounded = {key: np.asarray(array, self.dtype) for key, array in (arrays or {}).items()}
        self._nodes[name] = Node(op, name, inputs, attributes, rounded)
        return name

    def normalize(
        self, x: str, mean: Sequence[float] | None, std: Sequence[float] | None, channels: int
    ) -> str:
        """Emits the normalization of uint8 images."""
        if mean is None or std is None or not len(mean) == len(std) == channels:
            raise UserError(
                f"mean is {mean}, std is {std}: expected one of each per channel, {channels}"
            )
        arrays = {"mean": np.asarray(mean, np.float64), "std": np.asarray(std, np.float64)}
        return self.emit("normalize", "normalize", x, arrays=arrays)

    def conv(
        self,
        x: str,
        name: str,
        shape: tuple[int, int],
        *,
        norm: str | None,
        act: bool,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
    ) -> str:
        """Emits a convolution of `shape` (side, channels out) and a norm, folded if possible.

        The activation follows the norm, or the convolution if there is none.
        """
        side, features = shape
        kernel = self.parameters.get(name, "kernel")
        if kernel.shape[:2] != (side, side) or kernel.shape[-1] != features:
            raise UserError(
                f"the kernel of {name} has shape {kernel.shape}: expected"
                f" ({side}, {side}, channels, {features})"
            )
        arrays = self._conv_arrays(name, kernel)
        norm = None if self.spec.norm == "none" else norm
        affine = self._affine(norm, act) if norm else None
        if affine:
            bias = affine.bias + affine.scale * arrays.get("bias", 0.0)
            arrays = {"kernel": arrays["kernel"] * affine.scale, "bias": bias}
        x = self.emit(
            "conv",
            name,
            x,
            arrays=arrays,
            stride=stride,
            padding=side // 2 * dilation,
            dilation=dilation,
            groups=groups,
            activation=self.activation(act and (bool(affine) or not norm)),
        )
        return self.norm(x, norm, act=act) if norm and not affine else x

    def _conv_arrays(self, name: str, kernel: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the kernel, with the standardization of the spec applied, and the bias if any."""
        kind = resolve("conv", self.spec.conv)
        kernel = kernel if kind.epsilon is None else standardize(kernel, kind.epsilon)
        if not kind.has_gain:
            return {"kernel": kernel}
        gain, bias = (self.parameters.get(name, leaf) for leaf in ("gain", "bias"))
        gamma = gamma_of(resolve("activation", self.spec.activation))
        fan_in = kernel.size // kernel.shape[-1]
        return {"kernel": kernel * (gain * gamma / fan_in**0.5), "bias": bias}

    def norm(self, x: str, name: str, *, act: bool) -> str:
        """Emits a norm on its own, followed by its activation if `act`."""
        affine = self._affine(name, act) if self.spec.norm != "none" else None
        if affine:
            return self.emit(
                "affine", name, x, arrays=affine._asdict(), activation=self.activation(act)
            )
        return NORM_NODES[self.spec.norm](self, x, name, act)

    def activation(self, act: bool) -> str:
        """Returns the spec's activation as an attribute, or "none" if there is none."""
        name = str(self.spec.activation)
        return "none" if not act or name == "identity" else name

    def _affine(self, name: str, act: bool) -> Affine | None:
        """Returns a norm as an affine map, or None for norms that are not one or are kept."""
        scale, bias = (self.parameters.get(name, leaf) for leaf in ("scale", "bias"))
        if self.spec.norm == "evonorm_s0" and not act:
            return Affine(scale, bias)
        if self.spec.norm == "batch" and self.fold:
            mean, var = (self.parameters.get(name, leaf, "batch_stats") for leaf in ("mean", "var"))
            return batch_norm_affine(scale, bias, mean, var, self.spec.norm_epsilon)
        return None

    def norm_arrays(self, name: str, *leaves: str) -> dict[str, np.ndarray]:
        """Returns scale, bias and further parameters of a norm."""
        return {leaf: self.parameters.get(name, leaf) for leaf in ("scale", "bias", *leaves)}

    def steps(self, x: str, steps: Steps, name: str) -> str:
        """Emits the norm called `name`, the activation, both or neither, as `apply_steps`."""
        if "norm" in steps:
            return self.norm(x, name, act="act" in steps)
        return self.act(x, name) if "act" in steps else x

    def act(self, x: str, name: str) -> str:
        """Emits an activation on its own."""
        channels = self._channels(x)
        one = {"scale": np.ones(channels), "bias": np.zeros(channels)}
        return self.emit("affine", f"{name}_act", x, arrays=one, activation=self.activation(True))

    def _channels(self, x: str) -> int:
        """Returns the number of channels of a feature map."""
        node = self._nodes[x]
        if node.op == "conv":
            return int(node.arrays["kernel"].shape[-1])
        if node.op == "zero_pad":
            padding: int = node.attributes["before"] + node.attributes["after"]
            return self._channels(node.inputs[0]) + padding
        return len(node.arrays["scale"]) if node.arrays else self._channels(node.inputs[0])

    def dense(self, x: str, name: str, *, activation: str = "none") -> str:
        """Emits a linear layer with bias."""
        arrays = {leaf: self.parameters.get(name, leaf) for leaf in ("kernel", "bias")}
        return self.emit("dense", name, x, arrays=arrays, activation=activation)

    def test_pool(self, x: str, name: str, window: tuple[int, ...]) -> str:
        """Emits a linear layer over the means of windows; see "test_pool" in `OPS`."""
        arrays = {leaf: self.parameters.get(name, leaf) for leaf in ("kernel", "bias")}
        return self.emit("test_pool", name, x, arrays=arrays, window=window)

    def channel_conv(self, x: str, name: str, activation: str) -> str:
        """Emits ECA's convolution along the channels."""
        arrays = {"kernel": self.parameters.get(name, "kernel").ravel()}
        return self.emit("channel_conv", name, x, arrays=arrays, activation=activation)

    def gate(self, x: str, gate: str, block: str) -> str:
        """Emits the product of a feature map and its gate."""
        return self.emit("gate", f"{block}/gate", x, gate, activation="none")

    def scale(self, x: str, factor: Any, channels: int, name: str, *, merge: bool = False) -> str:
        """Emits `x` times a number or a vector over its channels.

        With `merge`, where possible into the convolution or affine map that computes `x`, which
        nothing else may read.
        """
        if np.ndim(factor) == 0 and factor == 1:
            return x
        vector = np.broadcast_to(np.asarray(factor, np.float64), (channels,))
        node = self._nodes.get(x)
        activation = node.attributes.get("activation") if node else None
        commutes = activation == "none" or (activation == "relu" and bool((vector > 0).all()))
        if merge and commutes and node and node.op in ("conv", "affine") and len(node.inputs) == 1:
            arrays = {key: array.astype(np.float64) * vector for key, array in node.arrays.items()}
            rounded = {key: array.astype(self.dtype) for key, array in arrays.items()}
            self._nodes[x] = node._replace(arrays=rounded)
            return x
        arrays = {"scale": vector, "bias": np.zeros(channels)}
        return self.emit("affine", name, x, arrays=arrays, activation="none")

    def finish(self, x: str, residual: str | None, name: str, *, act: bool) -> str:
        """Emits `x + residual` and an activation, merged into the operation that computes `x`.

        Nothing else may read `x`.
        """
        node = self._nodes[x]
        if residual is None and not act:
            return x
        activation = self.activation(act)
        can_sum = node.op in SUMMING_OPS and node.attributes["activation"] == "none"
        if residual is not None and not can_sum:
            return self.emit("add", name, x, residual, activation=activation)
        del self._nodes[x]  # it moves behind the nodes of the shortcut
        inputs = node.inputs if residual is None else (*node.inputs, residual)
        attributes = {**node.attributes, "activation": activation}
        return self.emit(node.op, x, *inputs, arrays=node.arrays, **attributes)


def _batch_norm(builder: GraphBuilder, x: str, name: str, act: bool) -> str:
    statistics = {
        leaf: builder.parameters.get(name, leaf, "batch_stats") for leaf in ("mean", "var")
    }
    return builder.emit(
        "batch_norm",
        name,
        x,
        arrays=builder.norm_arrays(name) | statistics,
        epsilon=builder.spec.norm_epsilon,
        activation=builder.activation(act),
    )


def _group_norm(builder: GraphBuilder, x: str, name: str, act: bool) -> str:
    return builder.emit(
        "group_norm",
        name,
        x,
        arrays=builder.norm_arrays(name),
        groups=GROUPS,
        epsilon=GROUP_NORM_EPSILON,
        activation=builder.activation(act),
    )


def _evonorm_s0(builder: GraphBuilder, x: str, name: str, act: bool) -> str:
    assert act, "without its activation, EvoNorm-S0 is an affine map"
    return builder.emit(
        "evonorm_s0",
        name,
        x,
        arrays=builder.norm_arrays(name, "v"),
        groups=GROUPS,
        epsilon=EvoNormS0.epsilon,
        activation="none",
    )


def _filter_response_norm(builder: GraphBuilder, x: str, name: str, act: bool) -> str:
    return builder.emit(
        "filter_response_norm",
        name,
        x,
        arrays=builder.norm_arrays(name, *["tau"] * act),
        epsilon=FilterResponseNorm.epsilon,
        activation="none",
    )


# Each row of `NORMS`, where it is not an affine map.
NORM_NODES: dict[str, Callable[[GraphBuilder, str, str, bool], str]] = {
    "batch": _batch_norm,
    "group": _group_norm,
    "evonorm_s0": _evonorm_s0,
    "frn_tlu": _filter_response_norm,
    "none": lambda builder, x, name, act: builder.act(x, name) if act else x,
}
