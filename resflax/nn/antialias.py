"""Anti-aliased downsampling (Zhang 2019, arXiv:1904.11486), as a table of pooling functions."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array

from resflax.kernels.pool import avg_pool, blur_pool, max_pool
from resflax.nn.layers import Ops


class AntiAlias(NamedTuple):
    """Row of `ANTIALIAS`.

    Attributes:
      pool: `(ops, x) -> x`, the stem's pooling, with stride 2.
      downsample: `(ops, x, stride) -> x`, applied after the activation of a strided convolution,
        which then has stride 1. None if the convolution itself strides.
    """

    pool: Callable[[Ops, Array], Array]
    downsample: Callable[[Ops, Array, int], Array] | None = None


def filtered_maximum(downsample: Callable[[Ops, Array, int], Array]) -> AntiAlias:
    """Returns the row whose pooling is a maximum with stride 1, then `downsample` (Zhang 2019)."""
    return AntiAlias(lambda ops, x: downsample(ops, max_pool(x, stride=1), 2), downsample)


ANTIALIAS: dict[str, AntiAlias] = {
    "none": AntiAlias(lambda ops, x: max_pool(x)),
    "blur": filtered_maximum(lambda ops, x, stride: blur_pool(x, stride)),
    # timm's "aa" networks: 2x2 average pooling (Tong He et al. 2018, and assembled-cnn).
    "average": AntiAlias(
        lambda ops, x: avg_pool(x, 2),
        lambda ops, x, stride: avg_pool(x, stride) if stride > 1 else x,
    ),
}
