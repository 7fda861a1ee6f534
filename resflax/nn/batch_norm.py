"""Batch normalisation in one pass over its input (Ioffe and Szegedy 2015, arXiv:1502.03167)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


@jax.custom_jvp
def _moments(x: Array, shift: Array) -> tuple[Array, Array]:
    """The means of `x` and of `(x - shift)^2` for each channel, in the dtype of `shift`.

    The derivative is written so that it keeps `x` and not `x - shift`, which XLA would write to
    memory, an array as large as `x`.
    """
    axes = range(x.ndim - 1)
    alone, s = _apart(x, shift)
    square = jnp.mean(jnp.square(alone.astype(s.dtype) - s), axes)
    (alone,) = _apart(x)
    return jnp.mean(alone.astype(shift.dtype), axes), square


@_moments.defjvp
def _moments_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    (x, shift), (dx, dshift) = primals, tangents
    axes, dx = range(x.ndim - 1), dx.astype(shift.dtype)
    mean, square = _moments(x, shift)
    dmean = jnp.mean(dx, axes)
    by_x = jnp.mean(x.astype(shift.dtype) * dx, axes) - shift * dmean
    return (mean, square), (dmean, 2 * (by_x + (shift - mean) * dshift))


@jax.custom_jvp
def _affine(x: Array, factor: Array, offset: Array) -> Array:
    """`x * factor + offset`, in the dtype of `factor`."""
    return x.astype(factor.dtype) * factor + offset


@_affine.defjvp
def _affine_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x, factor, _), (dx, dfactor, doffset) = primals, tangents
    alone, _ = _apart(x, factor)  # for the sum over pixels that the factor's gradient is
    dy = dx.astype(factor.dtype) * factor + alone.astype(factor.dtype) * dfactor + doffset
    return _affine(*primals), dy


def _apart(*arrays: Array) -> tuple[Array, ...]:
    """The same, for one user, whose fusion takes in what is done to them.

    XLA on the CPU writes to memory what two sums share, as `x` widened to float32. On a GPU it
    takes both in one pass, which a barrier would prevent. Of two barriers around the same arrays
    XLA keeps one, and their users would share again: each caller names another set of arrays.
    """
    return lax.platform_dependent(
        arrays, cpu=lax.optimization_barrier, default=lambda arrays: arrays
    )


class BatchNorm(nn.Module):
    """Normalises each channel (the last axis) by its mean and variance over all other axes.

    The same parameters, statistics and result as `flax.linen.BatchNorm`, from half the passes over
    memory. Mean and variance come from E[x] and E[(x-s)^2], where the shift `s` is the running
    mean: it keeps the difference E[(x-s)^2] - (E[x]-s)^2 from cancelling where the mean is large.
    The rest is one multiplication and one addition an element, so that the backward pass needs
    nothing but `x`.

    Attributes:
      train: normalise by the batch and update the running statistics, or by these.
      momentum: of the running statistics.
      epsilon: added to the variance.
      dtype: of the result; statistics and parameters are float32.
      axis_name: of the mapped axis over which statistics are averaged.
      scale_init: of the scale.
    """

    train: bool
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    axis_name: str | None = None
    scale_init: Any = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `x` to an array of its shape. With `train` make "batch_stats" mutable."""
        channels = x.shape[-1:]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        scale = self.param("scale", self.scale_init, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        wide = x.dtype if x.dtype == jnp.float64 else jnp.float32
        if self.train and not self.is_initializing():
            mean, var = self._statistics(x, running_mean.value.astype(wide))
            running_mean.value = self._moved(running_mean.value, mean)
            running_var.value = self._moved(running_var.value, var)
        else:
            mean, var = (v.value.astype(wide) for v in (running_mean, running_var))
        factor = scale.astype(wide) * lax.rsqrt(var + self.epsilon)
        return _affine(x, factor, bias.astype(wide) - mean * factor).astype(self.dtype)

    def _statistics(self, x: Array, shift: Array) -> tuple[Array, Array]:
        shift = lax.stop_gradient(shift)
        sums = _moments(x, shift)
        if self.axis_name:
            sums = lax.pmean(sums, self.axis_name)
        mean, square = sums
        return mean, jnp.maximum(square - jnp.square(mean - shift), 0)

    def _moved(self, old: Array, new: Array) -> Array:
        return self.momentum * old + (1 - self.momentum) * new.astype(old.dtype)
