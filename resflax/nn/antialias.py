"""Anti-aliased downsampling (Zhang 2019, arXiv:1904.11486), as a table of pooling functions."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array

from resflax.kernels.pool import avg_pool, blur_pool, max_pool


class AntiAlias(NamedTuple):
    """Row of `ANTIALIAS`.

    Attributes:
      pool: the stem's pooling, with stride 2.
      downsample: `(x, stride) -> x`, applied after the activation of a strided convolution, which
        then has stride 1. None if the convolution itself strides.
    """

    pool: Callable[[Array], Array]
    downsample: Callable[[Array, int], Array] | None = None


ANTIALIAS: dict[str, AntiAlias] = {
    "none": AntiAlias(max_pool),
    "blur": AntiAlias(lambda x: blur_pool(max_pool(x, stride=1), 2), blur_pool),
    # timm's "aa" networks: 2x2 average pooling (Tong He et al. 2018, and assembled-cnn).
    "average": AntiAlias(
        lambda x: avg_pool(x, 2), lambda x, stride: avg_pool(x, stride) if stride > 1 else x
    ),
}
