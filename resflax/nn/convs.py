"""Convolutions that a spec can name: how a kernel is standardized before it is applied."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resflax.kernels.conv import conv_general_dilated
from resflax.nn.batch_norm import statistics_dtype

ConvFunction = Callable[..., Array]


class ConvKind(NamedTuple):
    """Row of `CONVS`.

    Attributes:
      function: with the arguments of `jax.lax.conv_general_dilated`.
      epsilon: added to the variance by which each output channel of a kernel is standardized; None
        for kernels as they are.
      has_gain: whether each output channel has a learned gain and a bias, and the kernel is scaled
        for the activation that follows: see `resflax.nn.scaled_conv`. It needs an epsilon.
    """

    function: ConvFunction
    epsilon: float | None = None
    has_gain: bool = False

    def convolution(self) -> ConvFunction:
        """Returns the function of a kernel that is not yet standardized; without gains."""
        return self.function if self.epsilon is None else _standardized(self.function, self.epsilon)


@cache
def _standardized(function: ConvFunction, epsilon: float) -> ConvFunction:
    def convolve(
        lhs: Float[Array, "n *space channels"],
        rhs: Float[Array, "*kernel in out"],
        *args: Any,
        **kwargs: Any,
    ) -> Float[Array, "n *out_space out"]:
        kernel = rhs.astype(statistics_dtype(rhs))
        axes = range(rhs.ndim - 1)
        mean, var = jnp.mean(kernel, axes, keepdims=True), jnp.var(kernel, axes, keepdims=True)
        rhs = ((kernel - mean) * jax.lax.rsqrt(var + epsilon)).astype(rhs.dtype)
        return function(lhs, rhs, *args, **kwargs)

    return convolve


PLAIN = ConvKind(conv_general_dilated)
CONVS: dict[str, ConvKind] = {
    "plain": PLAIN,
    # Qiao et al. 2019 (arXiv:1903.10520), eq. 5, with BiT's epsilon (Kolesnikov et al. 2019).
    "standardized": ConvKind(conv_general_dilated, 1e-8),
    # Brock et al. 2021 (arXiv:2101.08692), section 4.
    "scaled_standardized": ConvKind(conv_general_dilated, 1e-5, has_gain=True),
}
