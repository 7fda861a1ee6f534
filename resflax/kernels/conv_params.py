"""Parameters of a convolution and its three passes.

With an image x, a kernel w and the gradient g of the loss for the output, the scalar

    T(x, w, g) = sum(conv(x, w) * g)

is linear in each of the three. Each pass takes two of them and returns the gradient of T for the
third:

    "fwd":   (x, w) -> conv(x, w), which is the gradient for g
    "dgrad": (g, w) -> the gradient for x
    "wgrad": (x, g) -> the gradient for w

So the derivative of each pass is another pass, to any order.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Shape = tuple[int, ...]
Padding = tuple[tuple[int, int], ...]

ConvPass = Literal["fwd", "dgrad", "wgrad"]
# The two operands of each pass, in order.
PASS_OPERANDS: dict[ConvPass, tuple[str, str]] = {
    "fwd": ("x", "w"),
    "dgrad": ("g", "w"),
    "wgrad": ("x", "g"),
}


class ConvParams(NamedTuple):
    """Static parameters of a convolution of NHWC images with HWIO kernels, or of NDHWC volumes.

    Attributes:
      image_size: height and width of x, in pixels; of volumes, depth, height and width.
      kernel_size: sizes of w along these axes.
      strides: over these axes.
      padding: ((top, bottom), (left, right)), in pixels; negative values crop.
      dilation: dilation of the kernel over these axes; 1 for none.
      groups: number of channel groups; w has `channels / groups` inputs.
      precision: matmul precision, as in `jax.default_matmul_precision`; None for JAX's default.
    """

    image_size: Shape
    kernel_size: Shape
    strides: Shape
    padding: Padding
    dilation: Shape
    groups: int
    precision: str | None = None

    @property
    def rank(self) -> int:
        """Number of axes of x, w and conv(x, w), without mapped ones."""
        return len(self.kernel_size) + 2

    @property
    def output_size(self) -> Shape:
        """Sizes of the spatial axes of conv(x, w), in pixels."""
        axes = zip(
            self.image_size,
            self.kernel_size,
            self.strides,
            self.padding,
            self.dilation,
            strict=True,
        )
        return tuple(
            max((size + sum(pad) - dilation * (kernel - 1) - 1) // stride + 1, 0)
            for size, kernel, stride, pad, dilation in axes
        )

    @property
    def crops(self) -> bool:
        """Whether any padding is negative."""
        return any(pad < 0 for side in self.padding for pad in side)

    def result_shape(self, conv_pass: ConvPass, lhs: Shape, rhs: Shape) -> Shape:
        """Returns the shape of a pass's result; axes before the last `rank` are mapped axes."""
        mapped, examples = lhs[: -self.rank], lhs[-self.rank]
        if conv_pass == "fwd":
            return (*mapped, examples, *self.output_size, rhs[-1])
        if conv_pass == "dgrad":
            return (*mapped, examples, *self.image_size, rhs[-2] * self.groups)
        return (*mapped, *self.kernel_size, lhs[-1] // self.groups, rhs[-1])


def channels_last(dimensions: int) -> Any:
    """Returns the layout of arrays `(n, *space, channels)` and kernels `(*space, in, out)`.

    >>> channels_last(2) == lax.conv_dimension_numbers((0,) * 4, (0,) * 4, ("NHWC", "HWIO", "NHWC"))
    True
    """
    space = tuple(range(1, dimensions + 1))
    array = (0, dimensions + 1, *space)
    kernel = (dimensions + 1, dimensions, *range(dimensions))
    return lax.ConvDimensionNumbers(array, kernel, array)


def xla_conv(
    conv_pass: ConvPass,
    lhs: Float[Array, " *shape"],
    rhs: Float[Array, " *shape"],
    params: ConvParams,
) -> Float[Array, " *shape"]:
    """Computes a pass by `lax.conv_general_dilated` or its transpose, on any platform.

    With a mapped axis, all convolutions are one grouped convolution.
    """
    if lhs.ndim > params.rank:
        return jax.vmap(lambda a, b: xla_conv(conv_pass, a, b, params))(lhs, rhs)
    return run_pass(_xla_forward, conv_pass, lhs, rhs, params)


def run_pass(
    forward: Callable[[Array, Array, ConvParams], Array],
    conv_pass: ConvPass,
    lhs: Float[Array, " *shape"],
    rhs: Float[Array, " *shape"],
    params: ConvParams,
) -> Float[Array, " *shape"]:
    """Computes a pass by `forward`, `(x, w, params) -> conv(x, w)`, or by its transposes."""
    shape = params.result_shape(conv_pass, lhs.shape, rhs.shape)
    # From `lhs`, so that under `shard_map` the type varies over the same mesh axes.
    result: Any = jax.typeof(lhs).update(shape=shape)
    if conv_pass == "fwd":
        return forward(lhs, rhs, params)
    if conv_pass == "dgrad":
        return jax.linear_transpose(lambda x: forward(x, rhs, params), result)(lhs)[0]
    return jax.linear_transpose(lambda w: forward(lhs, w, params), result)(rhs)[0]


def _xla_forward(x: Array, w: Array, params: ConvParams) -> Array:
    # XLA:CPU miscomputes convolutions that crop the start of an axis and pad its end. With padding
    # between 0 and the kernel's reach, neither this convolution nor its transposes do that. The
    # rest of the padding is applied first.
    reach = [d * (k - 1) for k, d in zip(params.kernel_size, params.dilation, strict=True)]
    inner = [
        (min(max(low, 0), r), min(max(high, 0), r))
        for (low, high), r in zip(params.padding, reach, strict=True)
    ]
    outer = [
        (low - a, high - b, 0) for (low, high), (a, b) in zip(params.padding, inner, strict=True)
    ]
    if any(map(any, outer)):
        x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *outer, (0, 0, 0)))
    return lax.conv_general_dilated(
        x,
        w,
        params.strides,
        inner,
        rhs_dilation=params.dilation,
        dimension_numbers=channels_last(len(params.strides)),
        feature_group_count=params.groups,
        precision=params.precision,
    )
