"""Batch normalisation in one pass over its input (Ioffe and Szegedy 2015, arXiv:1502.03167)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


@jax.custom_jvp
def _mean_square(x: Array, shift: Array) -> Array:
    """The mean of `(x - shift)^2` for each channel.

    Its derivative is written so that it keeps `x` and not `x - shift`, which XLA would write to
    memory, an array as large as `x`.
    """
    return jnp.mean(jnp.square(x - shift), range(x.ndim - 1))


@_mean_square.defjvp
def _mean_square_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x, shift), (dx, dshift) = primals, tangents
    axes = range(x.ndim - 1)
    by_x = jnp.mean(x * dx, axes) - shift * jnp.mean(dx, axes)
    by_shift = (shift - jnp.mean(x, axes)) * dshift
    return _mean_square(x, shift), 2 * (by_x + by_shift)


class BatchNorm(nn.Module):
    """Normalises each channel (the last axis) by its mean and variance over all other axes.

    The same parameters, statistics and result as `flax.linen.BatchNorm`, from half the passes over
    memory. Mean and variance come from E[x] and E[(x-s)^2], where the shift `s` is the running
    mean: it keeps the difference E[(x-s)^2] - (E[x]-s)^2 from cancelling where the mean is large. The rest is one multiplication and one addition an element, so that the
    backward pass needs nothing but `x`.

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
        wide = x.astype(x.dtype if x.dtype == jnp.float64 else jnp.float32)
        if self.train and not self.is_initializing():
            mean, var = self._statistics(wide, running_mean.value)
            running_mean.value = self._moved(running_mean.value, mean)
            running_var.value = self._moved(running_var.value, var)
        else:
            mean, var = (v.value.astype(wide.dtype) for v in (running_mean, running_var))
        factor = scale.astype(wide.dtype) * lax.rsqrt(var + self.epsilon)
        return (wide * factor + (bias.astype(wide.dtype) - mean * factor)).astype(self.dtype)

    def _statistics(self, x: Array, shift: Array) -> tuple[Array, Array]:
        axes, shift = tuple(range(x.ndim - 1)), lax.stop_gradient(shift).astype(x.dtype)
        sums = jnp.mean(x, axes), _mean_square(x, shift)
        if self.axis_name:
            sums = lax.pmean(sums, self.axis_name)
        mean, square = sums
        return mean, jnp.maximum(square - jnp.square(mean - shift), 0)

    def _moved(self, old: Array, new: Array) -> Array:
        return self.momentum * old + (1 - self.momentum) * new.astype(old.dtype)
