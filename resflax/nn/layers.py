"""Convolution, norm and activation, closed over once at the top of a network.

Everything that depends on how a network is run (training or not, compute dtype, the mapped axis
that batch statistics are shared over) is decided here; blocks see only their input.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from resflax.kernels.conv import conv_general_dilated
from resflax.nn.norms import NORMS

Array = jax.Array

# He et al. 2015b (arXiv:1502.01852), eq. 14 in its backward form: var = 2 / (k * k * out).
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def standardized(lhs: Array, rhs: Array, *args: Any, **kwargs: Any) -> Array:
    """A convolution by a kernel whose output channels have mean 0 and variance 1.

    Qiao et al. 2019 (arXiv:1903.10520), eq. 5, with BiT's epsilon (Kolesnikov et al. 2019).
    """
    wide = rhs.astype(jnp.float64 if rhs.dtype == jnp.float64 else jnp.float32)
    axes = range(rhs.ndim - 1)
    mean, var = jnp.mean(wide, axes), jnp.var(wide, axes)
    rhs = ((wide - mean) * jax.lax.rsqrt(var + 1e-8)).astype(rhs.dtype)
    return conv_general_dilated(lhs, rhs, *args, **kwargs)


CONVS: dict[str, Callable[..., Array]] = {
    "plain": conv_general_dilated,
    "standardized": standardized,
}


@dataclass(frozen=True)
class Ops:
    """The operations that a block is built of.

    Attributes:
      conv: `conv(x, features, kernel, stride=1, name=..., groups=1, dilation=1, zero=False)`; no
        bias, symmetric padding; `zero` starts its kernel at 0 instead of He normal.
      norm: `norm(x, name=..., zero=False)`; `zero` starts its scale at 0 instead of 1.
      norm_act: `norm_act(x, name=...)`: the norm and the activation that belongs to it.
      act: the non-linearity.
      dense: `dense(x, features, name=...)` over the last axis, with a bias.
      conv1d: `conv1d(x, kernel, name=...)` along the last axis, from one row to one; no bias.
    """

    conv: Callable[..., Array]
    norm: Callable[..., Array]
    norm_act: Callable[..., Array]
    act: Callable[[Array], Array]
    dense: Callable[..., Array]
    conv1d: Callable[..., Array]


# Numbers of streams of random numbers: far from those that `resflax.data` draws from such keys.
DROP_PATH, DROPOUT = 2000, 2001


def _uniform(keys: Array, stream: int, shape: tuple[int, ...]) -> Array:
    """Numbers from 0 to 1, float32 `(n, *shape)`, each example's by its own key."""

    def draw(key: Array) -> Array:
        return jax.random.uniform(jax.random.fold_in(key, stream), shape, jnp.float32)

    return jax.vmap(draw)(keys)


def drop_path(keys: Array, rate: float, blocks: int) -> Array:
    """What stochastic depth multiplies branches by, float32 `(blocks, n)`, an example a column.

    The branch of block l of L, counted from 0, is left out (0) with probability
    p = rate * l / (L - 1), and else multiplied by 1 / (1 - p), so that its expectation is that of
    evaluation. Huang et al. 2016 (arXiv:1603.09382), section 3; with timm's rates and scale, and
    for each example instead of each batch.

    Args:
      keys: one an example, `(n,)`: what is left out does not depend on an example's neighbours.
      rate: of the last block.
      blocks: L.

    >>> drop_path(jax.random.split(jax.random.key(0), 2), 0.999, 3)[0].tolist()
    [1.0, 1.0]
    """
    rates = jnp.asarray([rate * i / max(blocks - 1, 1) for i in range(blocks)], jnp.float32)
    kept = _uniform(keys, DROP_PATH, (blocks,)) >= rates
    return jnp.where(kept, 1 / (1 - rates), 0.0).T


def dropout(keys: Array, x: Array, rate: float) -> Array:
    """`x`, `(n, ...)`, with each element 0 with probability `rate`, else divided by `1 - rate`.

    Srivastava et al. 2014 (JMLR 15), section 4, scaled in training. `keys` are one an example.
    """
    kept = _uniform(keys, DROPOUT, x.shape[1:]) >= rate
    return jnp.where(kept, x / (1 - rate), jnp.zeros_like(x))


def make_ops(
    *,
    train: bool,
    dtype: Any,
    axis_name: str | None = None,
    norm: str = "batch",
    conv: str = "plain",
) -> Ops:
    """Operations for one call of a network.

    Args:
      train: normalise by the batch and update running statistics, or by the running statistics.
      dtype: of the computation; parameters and statistics stay float32.
      axis_name: of the `pmap` or `shard_map` axis that batch statistics are averaged over.
      norm: a name in `NORMS`.
      conv: a name in `CONVS`.
    """
    row, act = NORMS[norm], nn.relu

    def run_norm(x: Array, *, name: str, zero: bool = False, with_act: bool = False) -> Array:
        scale_init = nn.initializers.zeros if zero else nn.initializers.ones
        module: Any = row.make(
            train=train,
            dtype=dtype,
            axis_name=axis_name,
            scale_init=scale_init,
            act=with_act,
            name=name,
        )
        return module(x)

    def norm_act(x: Array, *, name: str) -> Array:
        x = run_norm(x, name=name, with_act=True)
        return x if row.acts else act(x)

    return Ops(
        conv=_conv(CONVS[conv], dtype),
        norm=run_norm,
        norm_act=norm_act,
        act=act,
        dense=lambda x, features, *, name: nn.Dense(features, dtype=dtype, name=name)(x),
        conv1d=_conv1d(dtype),
    )


def _conv(convolve: Callable[..., Array], dtype: Any) -> Callable[..., Array]:
    def conv(
        x: Array,
        features: int,
        kernel: int,
        stride: int = 1,
        *,
        name: str,
        groups: int = 1,
        dilation: int = 1,
        zero: bool = False,
    ) -> Array:
        # Not "SAME": with stride 2 that pads one-sidedly on even sizes, unlike the paper and torch.
        return nn.Conv(
            features,
            (kernel, kernel),
            strides=stride,
            padding=kernel // 2 * dilation,
            kernel_dilation=dilation,
            feature_group_count=groups,
            use_bias=False,
            conv_general_dilated=convolve,
            dtype=dtype,
            kernel_init=nn.initializers.zeros if zero else he_normal_fan_out,
            name=name,
        )(x)

    return conv


def _conv1d(dtype: Any) -> Callable[..., Array]:
    def conv1d(x: Array, kernel: int, *, name: str) -> Array:
        conv = nn.Conv(1, kernel, padding=kernel // 2, use_bias=False, dtype=dtype, name=name)
        return conv(x[..., None])[..., 0]

    return conv1d
