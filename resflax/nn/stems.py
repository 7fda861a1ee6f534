"""What stands before the first block. A stem is a function `(ops, x, width, preact) -> array`."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from resflax.nn.ops import Ops
from resflax.nn.pool import max_pool

Array = jax.Array


def _conv(ops: Ops, x: Array, width: int, kernel: int, stride: int, preact: bool) -> Array:
    x = ops.conv(x, width, kernel, stride, name="stem_conv")
    # A pre-activation network leaves norm and activation to its first block.
    return x if preact else ops.act(ops.norm(x, name="stem_norm"))


def imagenet(ops: Ops, x: Array, width: int, preact: bool) -> Array:
    """7x7 convolution of stride 2, then 3x3 maximum of stride 2: 224 -> 56 (He et al. 2015)."""
    x = _conv(ops, x, width, 7, 2, preact)
    return max_pool(x, window=3, stride=2, padding=1)


def cifar(ops: Ops, x: Array, width: int, preact: bool) -> Array:
    """One 3x3 convolution of stride 1, for small images (He et al. 2015, section 4.2)."""
    return _conv(ops, x, width, 3, 1, preact)


class Stem(NamedTuple):
    """A row of `STEMS`: the function, and how often it halves the image."""

    run: Callable[[Ops, Array, int, bool], Array]
    halvings: int


STEMS = {"imagenet": Stem(imagenet, halvings=2), "cifar": Stem(cifar, halvings=0)}
