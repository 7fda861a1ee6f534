"""The convolution as one trilinear form, and its three readings.

`T(x, w, g) = sum(conv(x, w) * g)` is linear in the image x, the kernel w and the output's gradient
g. Leaving one of them out gives the reading that is named after it:

    "y": (x, w) -> conv(x, w)      "x": (g, w) -> gradient for x      "w": (x, g) -> gradient for w

The derivative of each reading is another one, so the three are closed under differentiation.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Shape = tuple[int, ...]
Pair = tuple[int, int]

Reading = Literal["y", "x", "w"]
# What each reading takes, in order.
OPERANDS: dict[Reading, str] = {"y": "xw", "x": "gw", "w": "xg"}


class ConvForm(NamedTuple):
    """What a two-dimensional convolution is, besides its operands.

    Images are NHWC, kernels HWIO.

    Attributes:
      image: height and width of x, in pixels.
      window: height and width of w.
      strides: down and across.
      padding: ((top, bottom), (left, right)), in pixels; negative ones crop.
      dilation: of the kernel, down and across; 1 for none.
      groups: of channels that are convolved apart; w has `channels / groups` inputs.
      precision: of the products, as `jax.default_matmul_precision` names it; None for JAX's own.
    """

    image: Pair
    window: Pair
    strides: Pair
    padding: tuple[Pair, Pair]
    dilation: Pair
    groups: int
    precision: str | None = None

    @property
    def output(self) -> Pair:
        """Height and width of y, in pixels."""
        axes = zip(self.image, self.window, self.strides, self.padding, self.dilation, strict=True)
        down, across = (
            max((size + sum(pad) - dilation * (window - 1) - 1) // stride + 1, 0)
            for size, window, stride, pad, dilation in axes
        )
        return down, across

    @property
    def crops(self) -> bool:
        """Whether any padding is negative."""
        return any(pad < 0 for side in self.padding for pad in side)

    def shape(self, reading: Reading, lhs: Shape, rhs: Shape) -> Shape:
        """The shape of a reading's result; axes before the last four are ensemble members."""
        members = lhs[:-4]
        if reading == "y":
            return (*members, lhs[-4], *self.output, rhs[-1])
        if reading == "x":
            return (*members, lhs[-4], *self.image, rhs[-2] * self.groups)
        return (*members, *self.window, lhs[-1] // self.groups, rhs[-1])


def plain(reading: Reading, lhs: Array, rhs: Array, form: ConvForm) -> Array:
    """A reading as `lax.conv_general_dilated` and its transposes, on any platform."""
    if lhs.ndim > 4:
        return jax.vmap(lambda a, b: plain(reading, a, b, form))(lhs, rhs)

    # XLA on the CPU miscomputes convolutions that crop before and pad after; these here, and their
    # transposes, never do: what the kernel does not reach is cropped or padded first.
    reach = [d * (k - 1) for k, d in zip(form.window, form.dilation, strict=True)]
    inner = [
        (min(max(low, 0), r), min(max(high, 0), r))
        for (low, high), r in zip(form.padding, reach, strict=True)
    ]
    outer = [
        (low - a, high - b, 0) for (low, high), (a, b) in zip(form.padding, inner, strict=True)
    ]

    def y(x: Array, w: Array) -> Array:
        if any(map(any, outer)):
            x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *outer, (0, 0, 0)))
        return lax.conv_general_dilated(
            x,
            w,
            form.strides,
            inner,
            rhs_dilation=form.dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=form.groups,
            precision=form.precision,
        )

    shape = form.shape(reading, lhs.shape, rhs.shape)
    result = jax.typeof(lhs).update(shape=shape)  # varies as lhs and rhs do, under `shard_map`
    if reading == "y":
        return y(lhs, rhs)
    if reading == "x":
        return jax.linear_transpose(lambda x: y(x, rhs), result)(lhs)[0]
    return jax.linear_transpose(lambda w: y(lhs, w), result)(rhs)[0]
