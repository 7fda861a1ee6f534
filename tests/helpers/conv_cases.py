"""One convolution of each kind that networks use, and the CPU backends to test them on."""

import jax.numpy as jnp
import numpy as np
import pytest

from helpers.conv_reference import normal
from resflax.kernels import onednn

UNAVAILABLE_REASON = onednn.unavailable_reason()
needs_onednn = pytest.mark.skipif(UNAVAILABLE_REASON is not None, reason=str(UNAVAILABLE_REASON))
CPU_BACKENDS = ["cpu", pytest.param("onednn", marks=needs_onednn)]
NHWC = ("NHWC", "HWIO", "NHWC")
SAME_3X3 = {
    "window_strides": (1, 1),
    "padding": ((1, 1), (1, 1)),
    "dimension_numbers": NHWC,
}
POINTWISE = {"window_strides": (1, 1), "padding": ((0, 0), (0, 0)), "dimension_numbers": NHWC}
# Image shape, kernel shape and options; the "cpu" backend uses another algorithm for each.
LAYERS = {
    "pointwise": ((2, 6, 5, 8), (1, 1, 8, 12), {**POINTWISE, "window_strides": (2, 2)}),
    "winograd": ((4, 9, 8, 32), (3, 3, 32, 32), SAME_3X3),
    "blocks": ((2, 7, 9, 8), (3, 3, 8, 6), SAME_3X3),
    "taps": ((2, 7, 8, 8), (3, 3, 8, 6), {**SAME_3X3, "window_strides": (2, 2)}),
    "groups": ((2, 6, 7, 8), (3, 3, 2, 12), {**SAME_3X3, "feature_group_count": 4}),
}
every_layer = pytest.mark.parametrize("layer", LAYERS)
# Winograd is slow to compile.
all_but_winograd = pytest.mark.parametrize("layer", sorted(LAYERS.keys() - {"winograd"}))


def loss(convolve, x, w, **options):
    """A function that is not bilinear, so its second derivatives cover every pair of operands."""
    return jnp.sum(jnp.sin(convolve(x, w, **options)) * jnp.cos(jnp.mean(w)))


def example_of(layer):
    """Returns an image, a kernel, a tangent for each, and the layer's options."""
    x, w, options = LAYERS[layer]
    scale = np.sqrt(np.prod(w[:3]))
    tangents = normal(x, seed=2), normal(w, seed=3) / scale
    return normal(x), normal(w, seed=1) / scale, *tangents, options


def example_of_shapes(*shapes):
    """Returns an array of each shape."""
    return [normal(shape, seed=seed) for seed, shape in enumerate(shapes)]


def pass_shapes(params, x, w):
    """Returns, for each pass, the shapes of its two operands and of its result."""
    y = params.result_shape("fwd", x, w)
    return {"fwd": (x, w, y), "dgrad": (y, w, x), "wgrad": (x, y, w)}
