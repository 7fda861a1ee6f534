"""Batch normalization in one pass over its input (Ioffe and Szegedy 2015, arXiv:1502.03167)."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from resflax.kernels.varying import vary_alike
from resflax.nn.pointwise import affine_after, moments_after, pointwise_conv
from resflax.nn.space import per_channel


def statistics_dtype(x: Array) -> Any:
    """Returns the dtype for means and variances of `x`: float64 for float64, else float32."""
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


@jax.custom_jvp
def _moments(
    x: Float[Array, "*batch channels"], shift: Float[Array, " channels"]
) -> tuple[Float[Array, " channels"], Float[Array, " channels"]]:
    """Returns the means of `x` and `(x - shift)^2` per channel, in the dtype of `shift`.

    The custom derivative saves `x` for the backward pass. Autodiff would save `x - shift`, another
    array as large as `x` that XLA would write to memory.
    """
    axes = range(x.ndim - 1)
    isolated_x, isolated_shift = _fusion_barrier(x, shift)
    difference = isolated_x.astype(isolated_shift.dtype) - per_channel(isolated_shift, x)
    square = jnp.mean(jnp.square(difference), axes)
    (isolated_x,) = _fusion_barrier(x)
    return jnp.mean(isolated_x.astype(shift.dtype), axes), square


@_moments.defjvp
def _moments_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    (x, shift), (dx, dshift) = primals, tangents
    axes, dx = range(x.ndim - 1), dx.astype(shift.dtype)
    mean, square = _moments(x, shift)
    dmean = jnp.mean(dx, axes)
    by_x = jnp.mean(x.astype(shift.dtype) * dx, axes) - shift * dmean
    return (mean, square), (dmean, 2 * (by_x + (shift - mean) * dshift))


@jax.custom_jvp
def _affine(
    x: Float[Array, "*batch channels"],
    factor: Float[Array, " channels"],
    offset: Float[Array, " channels"],
) -> Float[Array, "*batch channels"]:
    """Returns `x * factor + offset`, in the dtype of `factor`."""
    return x.astype(factor.dtype) * per_channel(factor, x) + per_channel(offset, x)


@_affine.defjvp
def _affine_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x, factor, _), (dx, dfactor, doffset) = primals, tangents
    isolated_x, _ = _fusion_barrier(x, factor)  # for the sum over pixels in the factor's gradient
    by_x = dx.astype(factor.dtype) * per_channel(factor, x)
    by_factor = isolated_x.astype(factor.dtype) * per_channel(dfactor, x)
    return _affine(*primals), by_x + by_factor + per_channel(doffset, x)


def _fusion_barrier(*arrays: Array) -> tuple[Array, ...]:
    """Returns `arrays`, on the CPU behind a barrier that keeps their consumers from sharing work.

    XLA:CPU writes to memory what two reductions share, such as `x` converted to float32. On a GPU
    it fuses both into one pass, which a barrier would prevent. XLA merges two barriers around the
    same arrays, and their consumers would share again, so each caller passes a different set.
    """
    return lax.platform_dependent(
        vary_alike(*arrays), cpu=lax.optimization_barrier, default=lambda arrays: arrays
    )


class ModeRow(NamedTuple):
    """Row of `BATCH_NORM_MODES`: which examples' statistics normalize an example in training.

    Attributes:
      group_size: `(examples on this device, ghost batch size) -> examples per group`, for groups of
        consecutive examples, each normalized by its own statistics. None for one group of all
        examples of all devices.
      updates: whether training computes statistics. If False, it normalizes by the running ones
        and does not change them.
    """

    group_size: Callable[[int, int], int] | None = None
    updates: bool = True


# Examples whose statistics normalize an example in training.
BATCH_NORM_MODES: dict[str, ModeRow] = {
    "global": ModeRow(),  # all examples of all devices
    # All examples of the same device.
    "per_device": ModeRow(group_size=lambda examples, _: examples),
    # Groups of `ghost_batch_size` consecutive examples.
    "ghost": ModeRow(group_size=lambda _, ghost_batch_size: ghost_batch_size),
    "frozen": ModeRow(updates=False),  # none: the running statistics, which do not change
}


@dataclasses.dataclass(frozen=True)
class BatchNormMode:
    """How the batch norms of a network normalize in training. Evaluation does not depend on it.

    The running averages are of the statistics of the global batch in every mode that updates them,
    so all devices have the same ones. Their variance includes that between the means of groups, as
    precise BN's does (Wu and Johnson 2021, arXiv:2105.07576, section 3), where Hoffer et al. and
    PyTorch's per-device batch norm average the variances within groups.

    Attributes:
      name: "global" for the statistics of the whole batch; "per_device" for those of each device's
        part of it, which depend on the number of devices; "ghost" for those of each group of
        `ghost_batch_size` consecutive examples (Hoffer et al. 2017, arXiv:1705.08741, algorithm 1);
        "frozen" for the running statistics, which then do not change.
      ghost_batch_size: examples per group of "ghost". It must divide the number of examples on each
        device.
      frozen: paths of batch norms that are frozen whatever `name` is, such as "stage1_block1/norm1"
        or, with `scan=True`, "stage1_rest/norm1".

    >>> BatchNormMode("ghost", 16, frozen=("stem_norm",)).updates("stem_norm")
    False
    """

    name: str = "global"
    ghost_batch_size: int = 32
    frozen: tuple[str, ...] = ()

    def updates(self, path: str) -> bool:
        """Returns whether training changes the running statistics of the batch norm at `path`."""
        return BATCH_NORM_MODES[self.name].updates and path not in self.frozen

    def group_size(self, examples: int) -> int | None:
        """Returns the examples per group, of `examples` on this device; None for the whole batch.

        Raises:
          ValueError: if it does not divide the number of examples.
        """
        function = BATCH_NORM_MODES[self.name].group_size
        if function is None:
            return None
        size = function(examples, self.ghost_batch_size)
        if size < 1 or examples % size:
            raise ValueError(
                f"{examples} examples cannot be split into groups of {size} for batch norm"
            )
        return size


GLOBAL_BATCH = BatchNormMode()


def batch_norm_mode(model: nn.Module) -> BatchNormMode:
    """Returns a model's field `batch_norm`; the default for a model without one."""
    mode = getattr(model, "batch_norm", None)
    return mode if isinstance(mode, BatchNormMode) else GLOBAL_BATCH


class BatchNorm(nn.Module):
    """Normalizes each channel (the last axis) by its mean and variance over all other axes.

    Has the parameters, statistics and results of `flax.linen.BatchNorm`, with half the passes over
    memory. Mean and variance are computed from E[x] and E[(x-s)^2], where the shift `s` is the
    running mean, so that E[(x-s)^2] - (E[x]-s)^2 does not cancel where the mean is large. The rest
    is one multiplication and one addition per element, and the backward pass needs only `x`.

    Attributes:
      train: normalize by the batch's statistics and update the running ones. If False, normalize
        by the running statistics.
      momentum: decay of the running averages.
      epsilon: added to the variance.
      dtype: dtype of the result. Parameters and statistics are float32.
      axis_name: mapped axis over which batch statistics are averaged.
      scale_init: initializer of the scale.
      mode: which statistics normalize with `train=True`.
    """

    train: bool
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    axis_name: str | None = None
    scale_init: Any = nn.initializers.ones
    mode: BatchNormMode = GLOBAL_BATCH

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch channels"], kernel: Array | None = None
    ) -> Float[Array, "*batch channels"]:
        """Normalizes `x`. With `train=True`, make the collection "batch_stats" mutable.

        Args:
          x: the images.
          kernel: of size 1, `(..., channels, outputs)`, to normalize the convolution of `x` with it
            instead; see `resflax.nn.pointwise`. Only with the mode "global".
        """
        channels = x.shape[-1:] if kernel is None else kernel.shape[-1:]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        scale = self.param("scale", self.scale_init, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        dtype = statistics_dtype(x)
        weights = _Weights(scale.astype(dtype), bias.astype(dtype), self.epsilon, self.dtype)
        updates = self.train and self.mode.updates("/".join(self.path))
        if not updates or self.is_initializing():
            x = x if kernel is None else pointwise_conv(x, kernel)
            return weights.normalize(
                x, running_mean.value.astype(dtype), running_var.value.astype(dtype)
            )
        shift, size = running_mean.value.astype(dtype), self.mode.group_size(len(x))
        batch = _Batch(lax.stop_gradient(shift), self.axis_name, weights)
        if kernel is not None:
            y, mean, var = batch.normalize_convolution(x, kernel)
        elif size is None:
            y, mean, var = batch.normalize(x)
        else:
            y, mean, var = batch.normalize_groups(x, size)
        running_mean.value = self._update_average(running_mean.value, mean)
        running_var.value = self._update_average(running_var.value, var)
        return y

    def _update_average(self, average: Array, new: Array) -> Array:
        return self.momentum * average + (1 - self.momentum) * new.astype(average.dtype)


class _Weights(NamedTuple):
    """Scale, bias and epsilon of a batch norm, and the dtype of its result."""

    scale: Float[Array, " channels"]
    bias: Float[Array, " channels"]
    epsilon: float
    dtype: Any

    def factor_and_offset(self, mean: Array, var: Array) -> tuple[Array, Array]:
        """Returns the two vectors of `x * factor + offset`."""
        factor = self.scale * lax.rsqrt(var + self.epsilon)
        return factor, self.bias - mean * factor

    def normalize(self, x: Array, mean: Array, var: Array) -> Array:
        """Returns `(x - mean) / sqrt(var + epsilon) * scale + bias`."""
        return _affine(x, *self.factor_and_offset(mean, var)).astype(self.dtype)


class _Batch(NamedTuple):
    """Normalizes by the statistics of a batch, and returns them: `(y, mean, var)`.

    Attributes:
      shift: variances are computed around it.
      axis_name: mapped axis over which statistics are averaged.
      weights: scale and bias.
    """

    shift: Float[Array, " channels"]
    axis_name: str | None
    weights: _Weights

    def normalize(self, x: Array) -> tuple[Array, Array, Array]:
        """Normalizes by the statistics of the whole batch."""
        mean, var = self._global_statistics(_moments(x, self.shift))
        return self.weights.normalize(x, mean, var), mean, var

    def normalize_groups(self, x: Array, size: int) -> tuple[Array, Array, Array]:
        """Normalizes groups of `size` examples, each by its own statistics."""
        groups = x.reshape(-1, size, *x.shape[1:])
        moments = jax.vmap(_moments, (0, None))(groups, self.shift)
        statistics = _mean_var(moments, self.shift)
        y = jax.vmap(self.weights.normalize)(groups, *statistics).reshape(x.shape)
        return y, *self._global_statistics(jax.tree.map(lambda m: jnp.mean(m, 0), moments))

    def normalize_convolution(self, x: Array, kernel: Array) -> tuple[Array, Array, Array]:
        """Normalizes the 1x1 convolution of `x`, on accelerators without writing it to memory."""

        def fused(x: Array, kernel: Array) -> tuple[Array, Array, Array]:
            mean, var = self._global_statistics(moments_after(x, kernel, self.shift))
            y = affine_after(x, kernel, *self.weights.factor_and_offset(mean, var))
            return y.astype(self.weights.dtype), mean, var

        def separate(x: Array, kernel: Array) -> tuple[Array, Array, Array]:
            return self.normalize(pointwise_conv(x, kernel))

        return lax.platform_dependent(x, kernel, cpu=separate, default=fused)

    def _global_statistics(self, moments: Any) -> tuple[Array, Array]:
        """Returns mean and variance over all devices, from the moments of this one."""
        if self.axis_name:
            moments = lax.pmean(moments, self.axis_name)
        return _mean_var(moments, self.shift)


def _mean_var(moments: Any, shift: Array) -> tuple[Array, Array]:
    """Returns mean and variance from the results of `_moments`, of one batch or of groups."""
    mean, square = moments
    shift = lax.broadcast_to_rank(shift, mean.ndim)
    return mean, jnp.maximum(square - jnp.square(mean - shift), 0)
