"""One convolution of each kind that networks have, and the roads that they are tried on."""

import jax.numpy as jnp
import numpy as np
import pytest

from helpers.conv_reference import normal
from resflax.kernels import onednn

REASON = onednn.why_not()
needs_onednn = pytest.mark.skipif(REASON is not None, reason=str(REASON))
FAST = ["cpu", pytest.param("onednn", marks=needs_onednn)]
NHWC = ("NHWC", "HWIO", "NHWC")
SAME = {
    "window_strides": (1, 1),
    "padding": ((1, 1), (1, 1)),
    "dimension_numbers": NHWC,
}
ONE = {"window_strides": (1, 1), "padding": ((0, 0), (0, 0)), "dimension_numbers": NHWC}
# For each kind of network layer one: image, kernel, how. The cpu road takes each another way.
LAYERS = {
    "pointwise": ((2, 6, 5, 8), (1, 1, 8, 12), {**ONE, "window_strides": (2, 2)}),
    "winograd": ((4, 9, 8, 32), (3, 3, 32, 32), SAME),
    "blocks": ((2, 7, 9, 8), (3, 3, 8, 6), SAME),
    "taps": ((2, 7, 8, 8), (3, 3, 8, 6), {**SAME, "window_strides": (2, 2)}),
    "groups": ((2, 6, 7, 8), (3, 3, 2, 12), {**SAME, "feature_group_count": 4}),
}
every_layer = pytest.mark.parametrize("layer", LAYERS)
all_but_winograd = pytest.mark.parametrize(
    "layer", sorted(LAYERS.keys() - {"winograd"})
)  # it compiles long


def loss(convolve, x, w, **how):
    """Not bilinear, so that its second derivatives hold every pair of operands."""
    return jnp.sum(jnp.sin(convolve(x, w, **how)) * jnp.cos(jnp.mean(w)))


def point(layer):
    x, w, how = LAYERS[layer]
    scale = np.sqrt(np.prod(w[:3]))
    return normal(x), normal(w, seed=1) / scale, normal(x, seed=2), normal(w, seed=3) / scale, how


def shapes_of(form, x, w):
    """The shapes of each reading's operands and of its result."""
    y = form.shape("y", x, w)
    return {"y": (x, w, y), "x": (y, w, x), "w": (x, y, w)}
