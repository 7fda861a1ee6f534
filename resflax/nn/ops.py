"""Convolution, norm and activation, closed over once at the top of a network.

Everything that depends on how a network is run (training or not, compute dtype, the mapped axis
that batch statistics are shared over) is decided here; blocks see only their input.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax

from resflax.nn.conv import conv_general_dilated
from resflax.nn.norm import BatchNorm

Array = jax.Array

# He et al. 2015b (arXiv:1502.01852), eq. 14 in its backward form: var = 2 / (k * k * out).
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


@dataclass(frozen=True)
class Ops:
    """The three operations that a block is built of.

    Attributes:
      conv: `conv(x, features, kernel, stride=1, name=..., zero=False)`; no bias, symmetric padding;
        `zero` starts its kernel at 0 instead of He normal.
      norm: `norm(x, name=..., zero=False)`; `zero` starts its scale at 0 instead of 1.
      act: the non-linearity.
    """

    conv: Callable[..., Array]
    norm: Callable[..., Array]
    act: Callable[[Array], Array]


def make_ops(*, train: bool, dtype: Any, axis_name: str | None = None) -> Ops:
    """Operations for one call of a network.

    Args:
      train: normalise by the batch and update running statistics, or by the running statistics.
      dtype: of the computation; parameters and statistics stay float32.
      axis_name: of the `pmap` or `shard_map` axis that batch statistics are averaged over.
    """

    def conv(
        x: Array, features: int, kernel: int, stride: int = 1, *, name: str, zero: bool = False
    ) -> Array:
        # Not "SAME": with stride 2 that pads one-sidedly on even sizes, unlike the paper and torch.
        return nn.Conv(
            features,
            (kernel, kernel),
            strides=stride,
            padding=kernel // 2,
            use_bias=False,
            conv_general_dilated=conv_general_dilated,
            dtype=dtype,
            kernel_init=nn.initializers.zeros if zero else he_normal_fan_out,
            name=name,
        )(x)

    def norm(x: Array, *, name: str, zero: bool = False) -> Array:
        scale_init = nn.initializers.zeros if zero else nn.initializers.ones
        return BatchNorm(
            train=train, dtype=dtype, axis_name=axis_name, scale_init=scale_init, name=name
        )(x)

    return Ops(conv=conv, norm=norm, act=nn.relu)
