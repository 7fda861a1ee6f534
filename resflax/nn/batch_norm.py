"""Batch normalization in one pass over its input (Ioffe and Szegedy 2015, arXiv:1502.03167)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


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
    square = jnp.mean(jnp.square(isolated_x.astype(isolated_shift.dtype) - isolated_shift), axes)
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
    return x.astype(factor.dtype) * factor + offset


@_affine.defjvp
def _affine_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x, factor, _), (dx, dfactor, doffset) = primals, tangents
    isolated_x, _ = _fusion_barrier(x, factor)  # for the sum over pixels in the factor's gradient
    dy = dx.astype(factor.dtype) * factor + isolated_x.astype(factor.dtype) * dfactor + doffset
    return _affine(*primals), dy


def _fusion_barrier(*arrays: Array) -> tuple[Array, ...]:
    """Returns `arrays`, on the CPU behind a barrier that keeps their consumers from sharing work.

    XLA:CPU writes to memory what two reductions share, such as `x` converted to float32. On a GPU
    it fuses both into one pass, which a barrier would prevent. XLA merges two barriers around the
    same arrays, and their consumers would share again, so each caller passes a different set.
    """
    return lax.platform_dependent(
        arrays, cpu=lax.optimization_barrier, default=lambda arrays: arrays
    )


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
    """

    train: bool
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    axis_name: str | None = None
    scale_init: Any = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Float[Array, "*batch channels"]) -> Float[Array, "*batch channels"]:
        """Normalizes `x`. With `train=True`, make the collection "batch_stats" mutable."""
        channels = x.shape[-1:]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        scale = self.param("scale", self.scale_init, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        dtype = statistics_dtype(x)
        if self.train and not self.is_initializing():
            mean, var = self._batch_statistics(x, running_mean.value.astype(dtype))
            running_mean.value = self._update_average(running_mean.value, mean)
            running_var.value = self._update_average(running_var.value, var)
        else:
            mean, var = (v.value.astype(dtype) for v in (running_mean, running_var))
        factor = scale.astype(dtype) * lax.rsqrt(var + self.epsilon)
        return _affine(x, factor, bias.astype(dtype) - mean * factor).astype(self.dtype)

    def _batch_statistics(self, x: Array, shift: Array) -> tuple[Array, Array]:
        shift = lax.stop_gradient(shift)
        moments = _moments(x, shift)
        if self.axis_name:
            moments = lax.pmean(moments, self.axis_name)
        mean, square = moments
        return mean, jnp.maximum(square - jnp.square(mean - shift), 0)

    def _update_average(self, average: Array, new: Array) -> Array:
        return self.momentum * average + (1 - self.momentum) * new.astype(average.dtype)
