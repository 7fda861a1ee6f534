"""Activations by their names in timm and PyTorch, as functions of JAX."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

Activation = Callable[[Array], Array]


def identity(x: Array) -> Array:
    """Returns `x` unchanged."""
    return x


# Activations by name.
ACTIVATIONS: dict[str, Activation] = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "leaky_relu": jax.nn.leaky_relu,  # leaky ReLU with a slope of 0.01
    "elu": jax.nn.elu,
    "celu": jax.nn.celu,
    "selu": jax.nn.selu,
    # Exact GELU, as in PyTorch; `jax.nn.gelu` is the approximation by default.
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": jax.nn.gelu,  # GELU, approximated by tanh
    "silu": jax.nn.silu,
    "mish": jax.nn.mish,
    "hard_swish": jax.nn.hard_swish,
    "tanh": jnp.tanh,
    "identity": identity,
}
