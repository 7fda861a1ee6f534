"""Scaled weight standardization, the convolution of normalizer-free networks.

Brock et al. 2021 (arXiv:2101.08692), section 4, in timm's form: each output channel's kernel is
standardized and multiplied by `gain * gamma / sqrt(fan-in)`. Gamma, 1 over the standard deviation
of the activation of a standard normal number, keeps the variance of the signal.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from resflax.kernels.conv_params import channels_last
from resflax.nn.activations import ACTIVATIONS, Activation
from resflax.nn.batch_norm import statistics_dtype
from resflax.nn.space import per_channel

# The constants of DeepMind's code and timm, measured on samples.
GAMMAS = {
    "identity": 1.0,
    "celu": 1.270926833152771,
    "elu": 1.2716004848480225,
    "gelu": 1.7015043497085571,
    "leaky_relu": 1.70590341091156,
    "relu": 1.7139588594436646,
    "relu6": 1.7131484746932983,
    "selu": 1.0008515119552612,
    "silu": 1.7881293296813965,
    "tanh": 1.5939117670059204,
}


def gamma_of(activation: Activation) -> float:
    """Returns 1 over the standard deviation of the activation of a standard normal number.

    A published constant if there is one (`GAMMAS`), else by quadrature.

    >>> round(gamma_of(jax.nn.relu), 3), round(gamma_of(lambda x: 2 * x), 3)
    (1.714, 0.5)
    """
    names = [name for name, row in ACTIVATIONS.items() if row is activation]
    if names and names[0] in GAMMAS:
        return GAMMAS[names[0]]
    points, weights = np.polynomial.hermite_e.hermegauss(99)
    with jax.ensure_compile_time_eval():
        values = np.asarray(activation(jnp.asarray(points, jnp.float32)), np.float64)
    weights = weights / weights.sum()
    mean = (weights * values).sum()
    return float((weights * (values - mean) ** 2).sum() ** -0.5)


def scaled_kernel(
    kernel: Float[Array, "*kernel in out"],
    gain: Float[Array, " out"],
    gamma: float,
    epsilon: float = 1e-5,
) -> Float[Array, "*kernel in out"]:
    """Returns the standardized kernel times `gain * gamma / sqrt(fan-in)`."""
    axes, fan_in = range(kernel.ndim - 1), kernel.size // kernel.shape[-1]
    mean, var = jnp.mean(kernel, axes), jnp.var(kernel, axes)
    factor = jax.lax.rsqrt(var + epsilon) * gain * gamma / fan_in**0.5
    return (kernel - per_channel(mean, kernel)) * per_channel(factor, kernel)


class ScaledConv(nn.Module):
    """Convolution with a scaled kernel and a bias; its fields are those of `flax.linen.Conv`.

    Attributes:
      gamma: see `gamma_of`.
      epsilon: added to the variance of each output channel.
      conv: with the arguments of `jax.lax.conv_general_dilated`.
      gain_init: initializer of the gains, one per output channel.
    """

    features: int
    kernel_size: tuple[int, ...]
    strides: Any
    padding: Any
    kernel_dilation: int
    feature_group_count: int
    dtype: Any
    gamma: float
    epsilon: float
    conv: Callable[..., Array]
    gain_init: Any = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Float[Array, "n *space channels"]) -> Float[Array, "n *out_space out"]:
        """Convolves in `dtype`; the kernel is scaled in float32."""
        dimensions = len(self.kernel_size)
        shape = (*self.kernel_size, x.shape[-1] // self.feature_group_count, self.features)
        normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        kernel = self.param("kernel", normal, shape, jnp.float32)
        gain = self.param("gain", self.gain_init, (self.features,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x = x.astype(self.dtype)
        wide = statistics_dtype(x)
        scaled = scaled_kernel(kernel.astype(wide), gain.astype(wide), self.gamma, self.epsilon)
        strides = self.strides
        y = self.conv(
            x,
            scaled.astype(self.dtype),
            (strides,) * dimensions if isinstance(strides, int) else tuple(strides),
            self.padding,
            rhs_dilation=(self.kernel_dilation,) * dimensions,
            dimension_numbers=channels_last(dimensions),
            feature_group_count=self.feature_group_count,
        )
        return y + per_channel(bias.astype(self.dtype), y)
