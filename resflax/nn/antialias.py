"""What a network strides by: the strided layer itself, or a filter behind it (Zhang 2019).

"Making convolutional networks shift-invariant again", arXiv:1904.11486.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from resflax.kernels.pool import avg_pool, blur_pool, max_pool

Array = jax.Array


class AntiAlias(NamedTuple):
    """A row of `ANTIALIAS`.

    Attributes:
      pool: the stem's pooling, of stride 2.
      down: `(x, stride) -> x` behind an activation, in place of the stride of the layer before;
        None where that layer strides.
    """

    pool: Callable[[Array], Array]
    down: Callable[[Array, int], Array] | None = None


ANTIALIAS: dict[str, AntiAlias] = {
    "none": AntiAlias(max_pool),
    "blur": AntiAlias(lambda x: blur_pool(max_pool(x, stride=1), 2), blur_pool),
    # timm's `aa` nets: the average of 2x2 pixels (Tong He et al. 2018, and assembled-cnn).
    "average": AntiAlias(
        lambda x: avg_pool(x, 2), lambda x, stride: avg_pool(x, stride) if stride > 1 else x
    ),
}
