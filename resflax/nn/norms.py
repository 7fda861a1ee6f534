"""The normalisations that a spec can name, each with the activation that belongs to it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from resflax.nn.batch_norm import BatchNorm

Array = jax.Array
GROUPS = 32


def _wide(*arrays: Array) -> tuple[Array, ...]:
    """In float32, or in float64 if the first is."""
    dtype = jnp.float64 if arrays[0].dtype == jnp.float64 else jnp.float32
    return tuple(array.astype(dtype) for array in arrays)


def group_std(x: Array, epsilon: float) -> Array:
    """The deviation within each of 32 groups of channels of an image, `(n, 1, 1, channels)`."""
    n, height, width, channels = x.shape
    groups = x.reshape(n, height, width, GROUPS, channels // GROUPS)
    std = jnp.sqrt(jnp.var(groups, (1, 2, 4)) + epsilon)
    return jnp.repeat(std, channels // GROUPS, -1)[:, None, None]


class EvoNormS0(nn.Module):
    """`x sigmoid(v x) / std * scale + bias` (Liu et al. 2020, arXiv:2004.02967, table 2).

    Without its activation it is `x * scale + bias`, as timm has it.
    """

    act: bool
    dtype: Any = jnp.float32
    scale_init: Any = nn.initializers.ones
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps images to an array of their shape."""
        channels = x.shape[-1:]
        scale = self.param("scale", self.scale_init, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        x, scale, bias = _wide(x, scale, bias)
        if self.act:
            _, v = _wide(x, self.param("v", nn.initializers.ones, channels, jnp.float32))
            x = x * jax.nn.sigmoid(x * v) / group_std(x, self.epsilon)
        return (x * scale + bias).astype(self.dtype)


class FilterResponseNorm(nn.Module):
    """`max(x / rms * scale + bias, tau)` (Singh and Krishnan 2019, arXiv:1911.09737, eq. 1 to 3).

    The root mean square is over an image's pixels; without its activation there is no `tau`.
    """

    act: bool
    dtype: Any = jnp.float32
    scale_init: Any = nn.initializers.ones
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps images to an array of their shape."""
        channels = x.shape[-1:]
        scale = self.param("scale", self.scale_init, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        x, scale, bias = _wide(x, scale, bias)
        square = jnp.mean(jnp.square(x), (1, 2), keepdims=True)
        x = x * jax.lax.rsqrt(square + self.epsilon) * scale + bias
        if self.act:
            tau = self.param("tau", nn.initializers.zeros, channels, jnp.float32)
            x = jnp.maximum(x, tau.astype(x.dtype))
        return x.astype(self.dtype)


class Norm(NamedTuple):
    """A row of `NORMS`.

    Attributes:
      make: `(train=, dtype=, axis_name=, scale_init=, act=, name=) -> module`, called on `x`.
      acts: whether the module of `act=True` holds the activation; else the network's follows it.
      groups: what the number of channels is a multiple of.
    """

    make: Callable[..., Callable[[Array], Array]]
    acts: bool = False
    groups: int = 1


def _batch(*, act: bool, **fields: Any) -> Any:
    del act
    return BatchNorm(**fields)


def _group(*, train: bool, axis_name: str | None, act: bool, dtype: Any, **fields: Any) -> Any:
    del train, axis_name, act  # knows no batch
    norm = nn.GroupNorm(GROUPS, epsilon=1e-5, use_fast_variance=False, **fields)
    # Its own widening breaks under strict dtype promotion.
    return lambda x: norm(*_wide(x)).astype(dtype)


def _evonorm_s0(*, train: bool, axis_name: str | None, **fields: Any) -> Any:
    del train, axis_name
    return EvoNormS0(**fields)


def _frn_tlu(*, train: bool, axis_name: str | None, **fields: Any) -> Any:
    del train, axis_name
    return FilterResponseNorm(**fields)


NORMS: dict[str, Norm] = {
    "batch": Norm(_batch),
    "group": Norm(_group, groups=GROUPS),  # Wu and He 2018, arXiv:1803.08494
    "evonorm_s0": Norm(_evonorm_s0, acts=True, groups=GROUPS),
    "frn_tlu": Norm(_frn_tlu, acts=True),
}
