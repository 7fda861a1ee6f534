"""A 1x1 convolution and the batch norm after it, without reading the array between them.

With rows `x` (one per pixel) and a kernel `w`, the outputs `x w` have the means `E[x] w` and the
variances `w^T Cov[x] w`. Both come from the covariance of the input, which is small and cheap where
`w` has more output than input channels. So the factor and the offset of batch norm are known before
the convolution, which applies them itself: `x (w factor) + offset`. The network is the same, but
`x w` is never written, and neither is its gradient: that for `x` is `g (w factor)^T + x D`, with
the gradient `g` for the output and a small matrix D.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from resflax.kernels.conv import conv_general_dilated
from resflax.kernels.conv_params import channels_last
from resflax.nn.space import per_channel


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def second_moments(
    x: Float[Array, "*batch channels"], dtype: Any
) -> Float[Array, "channels channels"]:
    """Returns the mean of `x_i x_j` for all pairs of channels, summed in `dtype`.

    The custom derivative needs one matrix product in the backward pass, where autodiff would make
    one for each factor.
    """
    return _product(x, x, dtype) / (x.size // x.shape[-1])


@second_moments.defjvp
def _second_moments_jvp(
    dtype: Any, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    moments = second_moments(x, dtype)
    # In the dtype of `x`, so that its transpose multiplies `x` by a matrix of that dtype.
    half = _product(x, dx, x.dtype).astype(dtype) / (x.size // x.shape[-1])
    return moments, half + half.T


def _product(a: Array, b: Array, dtype: Any) -> Array:
    """Returns the sum over pixels of all products of a channel of `a` and one of `b`."""
    axes, sharding = tuple(range(a.ndim - 1)), jax.typeof(a).sharding
    # On explicit axes of a mesh the result's sharding must be given: the sum is over all devices.
    out = sharding.update(spec=(None, None)) if sharding.mesh.explicit_axes else None
    dimensions = ((axes, axes), ((), ()))
    return lax.dot_general(a, b, dimensions, preferred_element_type=dtype, out_sharding=out)


def moments_after(
    x: Float[Array, "n *space inputs"],
    kernel: Float[Array, "*ones inputs outputs"],
    shift: Float[Array, " outputs"],
) -> tuple[Float[Array, " outputs"], Float[Array, " outputs"]]:
    """Returns the means of `y` and `(y - shift)^2` per channel, for `y` the convolution of `x`."""
    w = kernel.reshape(kernel.shape[-2:]).astype(shift.dtype)
    mean = jnp.mean(x.astype(shift.dtype), range(x.ndim - 1))
    covariance = second_moments(x, shift.dtype) - jnp.outer(mean, mean)
    variance = jnp.sum(w * jnp.matmul(covariance, w, precision="highest"), 0)
    mean = jnp.matmul(mean, w, precision="highest")
    return mean, variance + jnp.square(mean - shift)


def affine_after(
    x: Float[Array, "n *space inputs"],
    kernel: Float[Array, "*ones inputs outputs"],
    factor: Float[Array, " outputs"],
    offset: Float[Array, " outputs"],
) -> Float[Array, "n *space outputs"]:
    """Returns `y * factor + offset`, for `y` the convolution of `x`, in the dtype of `x`."""
    kernel = kernel.astype(factor.dtype) * per_channel(factor, kernel)
    return _add_offset(pointwise_conv(x, kernel), offset)


def pointwise_conv(
    x: Float[Array, "n *space inputs"], kernel: Float[Array, "*ones inputs outputs"]
) -> Float[Array, "n *space outputs"]:
    """Convolves in the dtype of `x`."""
    space = x.ndim - 2
    return conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        (1,) * space,
        ((0, 0),) * space,
        dimension_numbers=channels_last(space),
    )


@jax.custom_jvp
def _add_offset(y: Array, offset: Array) -> Array:
    """Returns `y + offset`, in the dtype of `y`. Gradients for `offset` are summed in its own."""
    return y + per_channel(offset.astype(y.dtype), y)


@_add_offset.defjvp
def _add_offset_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> Any:
    (y, offset), (dy, doffset) = primals, tangents
    return _add_offset(y, offset), dy + jnp.broadcast_to(doffset, dy.shape).astype(dy.dtype)
