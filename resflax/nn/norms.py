"""The normalization layers that a spec can name, each with its activation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resflax.nn.batch_norm import BatchNorm, BatchNormMode, statistics_dtype
from resflax.nn.space import expand_like, per_channel, space_axes

GROUPS = 32
# From the class of a norm to a function of its fields that returns a module or a function of `x`.
Lift = Callable[[Any], Callable[..., Any]]


def group_std(
    x: Float[Array, "n *space channels"], epsilon: float
) -> Float[Array, "n *ones channels"]:
    """Returns the standard deviation within each of 32 channel groups of each image."""
    size = x.shape[-1] // GROUPS
    groups = x.reshape(*x.shape[:-1], GROUPS, size)
    std = jnp.sqrt(jnp.var(groups, (*space_axes(x), x.ndim)) + epsilon)
    return expand_like(jnp.repeat(std, size, -1), x)


class EvoNormS0(nn.Module):
    """EvoNorm-S0: `x sigmoid(v x) / std * scale + bias` (Liu et al. 2020, arXiv:2004.02967).

    Table 2 of the paper. With `act=False` it is `x * scale + bias`, as in timm.
    """

    act: bool
    dtype: Any = jnp.float32
    scale_init: Any = nn.initializers.ones
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "n *space channels"]) -> Float[Array, "n *space channels"]:
        """Normalizes each image on its own."""
        channels, dtype = x.shape[-1:], statistics_dtype(x)
        scale = self.param("scale", self.scale_init, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        x, scale, bias = x.astype(dtype), scale.astype(dtype), bias.astype(dtype)
        if self.act:
            v = self.param("v", nn.initializers.ones, channels, jnp.float32).astype(dtype)
            x = x * jax.nn.sigmoid(x * per_channel(v, x)) / group_std(x, self.epsilon)
        return (x * per_channel(scale, x) + per_channel(bias, x)).astype(self.dtype)


class FilterResponseNorm(nn.Module):
    """`max(x / rms * scale + bias, tau)` (Singh and Krishnan 2019, arXiv:1911.09737, eq. 1 to 3).

    The root mean square is over an image's pixels. With `act=False` there is no `tau`.
    """

    act: bool
    dtype: Any = jnp.float32
    scale_init: Any = nn.initializers.ones
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "n *space channels"]) -> Float[Array, "n *space channels"]:
        """Normalizes each image on its own."""
        channels, dtype = x.shape[-1:], statistics_dtype(x)
        scale = self.param("scale", self.scale_init, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        x, scale, bias = x.astype(dtype), scale.astype(dtype), bias.astype(dtype)
        square = jnp.mean(jnp.square(x), space_axes(x), keepdims=True)
        x = x * jax.lax.rsqrt(square + self.epsilon) * per_channel(scale, x) + per_channel(bias, x)
        if self.act:
            tau = self.param("tau", nn.initializers.zeros, channels, jnp.float32)
            x = jnp.maximum(x, per_channel(tau.astype(dtype), x))
        return x.astype(self.dtype)


class NormRow(NamedTuple):
    """Row of `NORMS`.

    Attributes:
      make: `(lift, train=, dtype=, axis_name=, mode=, scale_init=, act=, name=) -> module`, called
        on `x`. `lift` is applied to the module's class. `mode` is a `BatchNormMode`.
      has_activation: whether the module made with `act=True` applies its own activation. If False,
        the network's activation follows it.
      channel_multiple: number by which the channels must be divisible.
      function: `(ops, x, *, name, zero) -> x` in place of `make`.
    """

    make: Callable[..., Callable[[Array], Array]] | None
    has_activation: bool = False
    channel_multiple: int = 1
    function: Callable[..., Array] | None = None


def _batch(lift: Lift, *, act: bool, **fields: Any) -> Any:
    del act
    return lift(BatchNorm)(**fields)


def _without_batch_statistics(
    *, train: bool, axis_name: str | None, mode: BatchNormMode, **fields: Any
) -> dict[str, Any]:
    """Returns the fields of a norm whose result does not depend on the batch."""
    del train, axis_name, mode
    return fields


def _group(lift: Lift, **fields: Any) -> Any:
    fields = _without_batch_statistics(**fields)
    del fields["act"]
    dtype = fields.pop("dtype")
    norm = lift(nn.GroupNorm)(num_groups=GROUPS, epsilon=1e-5, use_fast_variance=False, **fields)

    def run(x: Array) -> Array:
        # Flax promotes dtypes, which strict dtype promotion rejects.
        with jax.numpy_dtype_promotion("standard"):
            y: Array = norm(x.astype(statistics_dtype(x)))
        return y.astype(dtype)

    return run


def _evonorm_s0(lift: Lift, **fields: Any) -> Any:
    return lift(EvoNormS0)(**_without_batch_statistics(**fields))


def _frn_tlu(lift: Lift, **fields: Any) -> Any:
    return lift(FilterResponseNorm)(**_without_batch_statistics(**fields))


def _none(lift: Lift, **fields: Any) -> Any:
    del lift, fields
    return lambda x: x


BATCH, NONE = NormRow(_batch), NormRow(_none)
NORMS: dict[str, NormRow] = {
    "batch": BATCH,
    "group": NormRow(_group, channel_multiple=GROUPS),  # Wu and He 2018, arXiv:1803.08494
    "evonorm_s0": NormRow(_evonorm_s0, has_activation=True, channel_multiple=GROUPS),
    "frn_tlu": NormRow(_frn_tlu, has_activation=True),
    "none": NONE,  # makes no module
}
