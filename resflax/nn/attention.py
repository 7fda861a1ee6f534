"""What scales a branch's channels before the shortcut is added. Functions `(ops, x, channels)`."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from resflax.nn.layers import Ops

Array = jax.Array
Attention = Callable[[Ops, Array, int], Array]


def none(ops: Ops, x: Array, channels: int) -> Array:
    """`x`."""
    del ops, channels
    return x


def squeeze_excite(ops: Ops, x: Array, channels: int, *, ratio: float) -> Array:
    """`x * sigmoid(W2 relu(W1 mean(x)))` (Hu et al. 2017, arXiv:1709.01507, eq. 3).

    The inner layer has `ratio * channels` units, to the nearest eight.
    """
    del channels
    units = max(8, int(x.shape[-1] * ratio + 4) // 8 * 8)
    h = ops.act(ops.dense(jnp.mean(x, (1, 2)), units, name="se_fc1"))
    gate = jax.nn.sigmoid(ops.dense(h, x.shape[-1], name="se_fc2"))
    return x * gate[:, None, None]


def eca_kernel(channels: int) -> int:
    """The odd kernel size nearest to `(log2(channels) + 1) / 2`, from 3 (Wang et al. 2019, eq. 12).

    >>> [eca_kernel(c) for c in (64, 256, 512, 2048)]
    [3, 5, 5, 7]
    """
    size = int((math.log2(channels) + 1) / 2)
    return max(3, size if size % 2 else size + 1)


def efficient_channel(ops: Ops, x: Array, channels: int) -> Array:
    """`x * sigmoid(conv(mean(x)))`, convolved along the channels (ECA, arXiv:1910.03151).

    The kernel's size is that of `channels`, of which a pruned network has kept fewer.
    """
    gate = ops.conv1d(jnp.mean(x, (1, 2)), eca_kernel(channels), name="eca_conv")
    return x * jax.nn.sigmoid(gate)[:, None, None]


ATTENTION: dict[str, Attention] = {
    "none": none,
    "se": partial(squeeze_excite, ratio=1 / 16),
    # ResNet-RS (Bello et al. 2021, arXiv:2103.07579, section 4).
    "se_rs": partial(squeeze_excite, ratio=1 / 4),
    "eca": efficient_channel,
}
