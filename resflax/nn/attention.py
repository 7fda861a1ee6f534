"""Channel attention, applied to a branch before the shortcut is added.

Each row of `ATTENTION` is a function `(ops, x, channels)`. `channels` is the number of channels of
the block before pruning, which can be larger than that of `x`.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
from jaxtyping import Array, Float

from resflax.nn.layers import Ops
from resflax.nn.space import expand_like, mean_over_space

Attention = Callable[[Ops, Array, int], Array]


def squeeze_excite(
    ops: Ops, x: Float[Array, "n *space channels"], channels: int, *, ratio: float
) -> Float[Array, "n *space channels"]:
    """Returns `x * sigmoid(W2 relu(W1 mean(x)))` (Hu et al. 2017, arXiv:1709.01507, eq. 3).

    The hidden layer has `ratio` times the channels of `x`, rounded to a multiple of 8, at least 8.
    """
    del channels
    hidden = max(8, int(x.shape[-1] * ratio + 4) // 8 * 8)
    h = jax.nn.relu(ops.dense(mean_over_space(x), hidden, name="se_fc1"))
    gate = jax.nn.sigmoid(ops.dense(h, x.shape[-1], name="se_fc2"))
    return x * expand_like(gate, x)


def eca_kernel_size(channels: int) -> int:
    """Returns `(log2(channels) + 1) / 2`, rounded to an odd number of at least 3.

    Wang et al. 2019 (arXiv:1910.03151), eq. 12. Even integers are rounded up.

    >>> [eca_kernel_size(channels) for channels in (64, 256, 512, 2048)]
    [3, 5, 5, 7]
    """
    size = int((math.log2(channels) + 1) / 2)
    return max(3, size if size % 2 else size + 1)


def efficient_channel(
    ops: Ops, x: Float[Array, "n *space kept_channels"], channels: int
) -> Float[Array, "n *space kept_channels"]:
    """Returns `x * sigmoid(conv1d(mean(x)))`, a convolution over the channels (arXiv:1910.03151).

    The kernel size follows from `channels`, also where pruning kept fewer channels.
    """
    gate = ops.conv1d(mean_over_space(x), eca_kernel_size(channels), name="eca_conv")
    return x * expand_like(jax.nn.sigmoid(gate), x)


ATTENTION: dict[str, Attention] = {
    "none": lambda ops, x, channels: x,
    "se": partial(squeeze_excite, ratio=1 / 16),
    # ResNet-RS (Bello et al. 2021, arXiv:2103.07579, section 4).
    "se_rs": partial(squeeze_excite, ratio=1 / 4),
    "eca": efficient_channel,
}
