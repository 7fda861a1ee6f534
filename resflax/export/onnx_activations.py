"""The ONNX operators that compute each activation of the inference form."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from resflax.export.onnx_writer import OnnxWriter

# `(writer, name, x) -> name`: adds nodes of which the last is called `name`.
Activation = Callable[[OnnxWriter, str, str], str]


def _operator(operator: str, **attributes: Any) -> Activation:
    return lambda writer, name, x: writer.emit(operator, name, x, **attributes)


def _times(function: Activation) -> Activation:
    """Returns `x * function(x)`."""

    def activation(writer: OnnxWriter, name: str, x: str) -> str:
        return writer.emit("Mul", name, x, function(writer, f"{name}/gate", x))

    return activation


def _scaled(writer: OnnxWriter, name: str, operator: str, x: str, number: float) -> str:
    return writer.emit(operator, name, x, writer.constant(f"{name}/number", np.float32(number)))


def _relu6(writer: OnnxWriter, name: str, x: str) -> str:
    limits = [writer.constant(f"{name}/{n}", np.float32(n)) for n in (0, 6)]
    return writer.emit("Clip", name, x, *limits)


def _normal_cdf(writer: OnnxWriter, name: str, x: str) -> str:
    """Adds `(1 + erf(x / sqrt(2))) / 2`."""
    erf = writer.emit("Erf", f"{name}/erf", _scaled(writer, f"{name}/x", "Div", x, math.sqrt(2)))
    return _scaled(writer, name, "Mul", _scaled(writer, f"{name}/sum", "Add", erf, 1), 0.5)


def _normal_cdf_tanh(writer: OnnxWriter, name: str, x: str) -> str:
    """Adds `(1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2`."""
    cube = _scaled(writer, f"{name}/cube", "Pow", x, 3)
    inner = writer.emit("Add", f"{name}/in", x, _scaled(writer, f"{name}/c", "Mul", cube, 0.044715))
    tanh = writer.emit(
        "Tanh", f"{name}/tanh", _scaled(writer, f"{name}/k", "Mul", inner, math.sqrt(2 / math.pi))
    )
    return _scaled(writer, name, "Mul", _scaled(writer, f"{name}/sum", "Add", tanh, 1), 0.5)


def _tanh_softplus(writer: OnnxWriter, name: str, x: str) -> str:
    return writer.emit("Tanh", name, writer.emit("Softplus", f"{name}/softplus", x))


# The names of `resflax.nn.ACTIVATIONS` without "identity", and those of gates.
ACTIVATIONS: dict[str, Activation] = {
    "relu": _operator("Relu"),
    "relu6": _relu6,
    "leaky_relu": _operator("LeakyRelu", alpha=0.01),
    "elu": _operator("Elu"),
    "celu": _operator("Celu"),
    "selu": _operator("Selu"),
    "gelu": _times(_normal_cdf),
    "gelu_tanh": _times(_normal_cdf_tanh),
    "silu": _times(_operator("Sigmoid")),
    "mish": _times(_tanh_softplus),
    "hard_swish": _times(_operator("HardSigmoid", alpha=1 / 6, beta=0.5)),
    "tanh": _operator("Tanh"),
    "sigmoid": _operator("Sigmoid"),
}
