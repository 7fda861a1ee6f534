"""Convolution, norm and activation, bound to one call of a network.

`make_ops` fixes everything that depends on how a network is called: training or evaluation, compute
dtype, and the mapped axis over which batch statistics are averaged. Blocks only handle arrays.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resflax.errors import UserError
from resflax.nn.activations import Activation, identity
from resflax.nn.batch_norm import GLOBAL_BATCH, BatchNorm, BatchNormMode
from resflax.nn.convs import PLAIN, ConvKind
from resflax.nn.norms import BATCH, NONE, Lift, NormRow
from resflax.nn.scaled_conv import ScaledConv, gamma_of

Sizes = int | tuple[int, ...]

# He et al. 2015b (arXiv:1502.01852), eq. 14 in its backward form: var = 2 / (k * k * out).
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


@jax.custom_jvp
def relu_of_sum(x: Array) -> Array:
    """Returns `max(x, 0)`, with a derivative that reads the result instead of `x`.

    The next block reads the result as well, while nothing else reads the sum of a block, which
    autodiff of `jax.nn.relu` would save or compute again.
    """
    return jnp.maximum(x, 0)


@relu_of_sum.defjvp
def _relu_of_sum_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    y = relu_of_sum(x)
    return y, jnp.where(y != 0, dx, jnp.zeros_like(dx))


@dataclass(frozen=True)
class Ops:
    """Operations from which blocks are built. Each call makes a module called `name`.

    Attributes:
      conv: `conv(x, features, kernel, stride=1, name=..., groups=1, dilation=1, zero=False)`: a
        convolution without bias, with symmetric padding, along the `dimensions` spatial axes.
        `kernel` and `stride` are one number for all of them, or a tuple. `zero` initializes its
        kernel (with scaled kernels, its gain) to 0 instead of He normal.
      image_conv: the same, for the convolution that reads the images.
      norm: `norm(x, name=..., zero=False)`. `zero` initializes its scale to 0 instead of 1.
      norm_act: `norm_act(x, name=..., between=identity)`: the norm, `between` and the activation;
        `between` comes last if the norm has an activation of its own.
      act: `act(x)`, the activation; makes no module.
      act_of_sum: the same after a shortcut is added, for which see `relu_of_sum`.
      dense: `dense(x, features, name=..., use_bias=True)`: a linear layer over the last axis.
      conv1d: `conv1d(x, kernel, name=...)`: a convolution along the last axis, one channel to one
        channel, without bias.
      channel_groups: number of groups of channels that are separate networks; 1 except for packed
        ensembles.
      train: whether this call trains.
      dtype: compute dtype.
      axis_name: mapped axis over which batch statistics are averaged, or None.
      batch_norm: whose statistics batch norms use in training: the field `mode` of
        `resflax.nn.batch_norm.BatchNorm` in a norm of your own.
      fused_conv_norm: a 1x1 convolution and its norm as one, see `resflax.nn.pointwise`; None if
        this call has no such operation.
      dimensions: number of spatial axes of the arrays.
      norms: whether `norm` normalizes; if not, it returns its input.
    """

    conv: Callable[..., Array]
    image_conv: Callable[..., Array]
    norm: Callable[..., Array]
    norm_act: Callable[..., Array]
    act: Callable[[Array], Array]
    act_of_sum: Callable[[Array], Array]
    dense: Callable[..., Array]
    conv1d: Callable[..., Array]
    channel_groups: int = 1
    train: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None
    batch_norm: BatchNormMode = GLOBAL_BATCH
    fused_conv_norm: Callable[..., Array] | None = None
    dimensions: int = 2
    norms: bool = True

    def conv_norm(
        self, x: Array, features: int, kernel: Sizes, stride: Sizes = 1, *,
        name: str, norm_name: str, zero: bool = False, **kwargs: Any,
    ) -> Array:  # fmt: skip
        """Applies `conv`, called `name`, and `norm`, called `norm_name`.

        The two are one operation for an expansion by a 1x1 convolution, where there is one. `zero`
        initializes the norm's scale to 0 instead of 1, or without norms the kernel. Other arguments
        are those of `conv`.
        """
        groups = kwargs.get("groups", 1)
        if self.fused_conv_norm and kernel == groups == 1 and x.shape[-1] < features:
            return self.fused_conv_norm(
                x, features, stride, name=name, norm_name=norm_name, zero=zero
            )
        x = self.conv(
            x, features, kernel, stride, name=name, zero=zero and not self.norms, **kwargs
        )
        return self.norm(x, name=norm_name, zero=zero)


class Kernel(nn.Module):
    """The kernel of a convolution that another module computes, as `flax.linen.Conv` has it."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self) -> Float[Array, "*kernel inputs outputs"]:
        """Returns the kernel."""
        return self.param("kernel", he_normal_fan_out, self.shape, jnp.float32)


def make_ops(
    *,
    train: bool,
    dtype: Any,
    axis_name: str | None = None,
    batch_norm: BatchNormMode = GLOBAL_BATCH,
    norm: NormRow = BATCH,
    norm_momentum: float = BatchNorm.momentum,
    norm_epsilon: float = BatchNorm.epsilon,
    conv: ConvKind = PLAIN,
    activation: Activation = nn.relu,
    dimensions: int = 2,
    lift_norm: Lift = lambda module_class: module_class,
) -> Ops:
    """Returns the operations for one call of a network.

    Args:
      train: normalize by the batch's statistics and update the running ones. If False, normalize
        by the running statistics.
      dtype: compute dtype. Parameters and statistics stay float32.
      axis_name: `pmap` or `shard_map` axis over which batch statistics are averaged.
      batch_norm: which statistics batch norms normalize by with `train=True`.
      norm: a row of `NORMS`.
      norm_momentum: decay of the running averages of batch norms.
      norm_epsilon: what batch norms add to variances.
      conv: a row of `CONVS`.
      activation: a row of `ACTIVATIONS`.
      dimensions: number of spatial axes.
      lift_norm: applied to the class of each norm, such as a linen transform.
    """
    statistics: Any = {"momentum": norm_momentum, "epsilon": norm_epsilon}

    def lift(module_class: Any) -> Any:
        lifted = lift_norm(module_class)
        return partial(lifted, **statistics) if module_class is BatchNorm else lifted

    def run_norm(x: Array, *, name: str, zero: bool = False, with_act: bool = False) -> Array:
        if norm.function:
            return norm.function(ops, x, name=name, zero=zero)
        scale_init = nn.initializers.zeros if zero else nn.initializers.ones
        assert norm.make
        module: Any = norm.make(
            lift,
            train=train,
            dtype=dtype,
            axis_name=axis_name,
            mode=batch_norm,
            scale_init=scale_init,
            act=with_act,
            name=name,
        )
        return module(x)

    def norm_act(x: Array, *, name: str, between: Activation = identity) -> Array:
        x = between(run_norm(x, name=name, with_act=True))
        return x if norm.has_activation else activation(x)

    def dense(x: Array, features: int, *, name: str, use_bias: bool = True) -> Array:
        return nn.Dense(features, use_bias=use_bias, dtype=dtype, name=name)(x)

    def fused_conv_norm(
        x: Array, features: int, stride: Sizes, *, name: str, norm_name: str, zero: bool
    ) -> Array:
        strides = per_axis(stride, dimensions)
        kernel = Kernel((*[1] * dimensions, x.shape[-1], features), name=name)()
        module = BatchNorm(
            train=True,
            dtype=dtype,
            axis_name=axis_name,
            mode=batch_norm,
            scale_init=nn.initializers.zeros if zero else nn.initializers.ones,
            name=norm_name,
            **statistics,
        )
        if max(strides) > 1:
            # Written once: as a part of each of its five consumers it would be read in full.
            strided = jax.lax.slice(x, (0,) * x.ndim, x.shape, (1, *strides, 1))
            x = jax.lax.optimization_barrier(strided)
        return module(x, kernel)

    # In float32 the default precision of matrix products on accelerators is too low for variances.
    fuses = train and dtype == jnp.bfloat16 and batch_norm.name == "global"
    fuses = fuses and norm is BATCH and conv is PLAIN
    fuses_relu = activation is nn.relu and dtype == jnp.bfloat16
    gamma = gamma_of(activation) if conv.has_gain else None
    run_conv = _make_conv(conv, dtype, dimensions, gamma)
    ops = Ops(
        conv=run_conv,
        image_conv=run_conv,
        norm=run_norm,
        norm_act=norm_act,
        act=activation,
        act_of_sum=relu_of_sum if fuses_relu else activation,
        dense=dense,
        conv1d=_make_conv1d(dtype),
        train=train,
        dtype=dtype,
        axis_name=axis_name,
        batch_norm=batch_norm,
        fused_conv_norm=fused_conv_norm if fuses else None,
        dimensions=dimensions,
        norms=norm is not NONE,
    )
    return ops


def per_axis(sizes: Sizes, dimensions: int) -> tuple[int, ...]:
    """Returns one number per spatial axis, from one for all of them or a tuple.

    Raises:
      UserError: if the tuple has another length.
    """
    if isinstance(sizes, int):
        return (sizes,) * dimensions
    if len(sizes) != dimensions:
        raise UserError(
            f"kernel or stride {tuple(sizes)} in a network of {dimensions} dimensions: expected one"
            " number, or one per dimension"
        )
    return tuple(sizes)


def _make_conv(
    kind: ConvKind, dtype: Any, dimensions: int, gamma: float | None
) -> Callable[..., Array]:
    """Returns `Ops.conv`; with `gamma` of scaled kernels, see `ScaledConv`."""

    def conv(
        x: Float[Array, "n *space channels"],
        features: int,
        kernel: Sizes,
        stride: Sizes = 1,
        *,
        name: str,
        groups: int = 1,
        dilation: int = 1,
        zero: bool = False,
    ) -> Float[Array, "n *out_space {features}"]:
        sizes = per_axis(kernel, dimensions)
        # Not "SAME": with stride 2 it pads even sizes on one side only, unlike the paper and torch.
        fields: dict[str, Any] = {
            "strides": per_axis(stride, dimensions),
            "padding": [(size // 2 * dilation,) * 2 for size in sizes],
            "kernel_dilation": dilation,
            "feature_group_count": groups,
            "dtype": dtype,
            "name": name,
        }
        if gamma is not None:
            gain_init = nn.initializers.zeros if zero else nn.initializers.ones
            scale: dict[str, Any] = {
                "gamma": gamma,
                "epsilon": kind.epsilon,
                "gain_init": gain_init,
            }
            return ScaledConv(features, sizes, conv=kind.function, **scale, **fields)(x)
        return nn.Conv(
            features,
            sizes,
            use_bias=False,
            conv_general_dilated=kind.convolution(),
            kernel_init=nn.initializers.zeros if zero else he_normal_fan_out,
            **fields,
        )(x)

    return conv


def _make_conv1d(dtype: Any) -> Callable[..., Array]:
    def conv1d(
        x: Float[Array, "n channels"], kernel: int, *, name: str
    ) -> Float[Array, "n channels"]:
        conv = nn.Conv(1, kernel, padding=kernel // 2, use_bias=False, dtype=dtype, name=name)
        return conv(x[..., None])[..., 0]

    return conv1d
