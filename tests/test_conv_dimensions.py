"""Convolutions of signals and volumes against float64, in all passes and on every CPU backend."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.conv_cases import CPU_BACKENDS, example_of_shapes
from helpers.conv_reference import assert_close, reference

from resflax.kernels import conv_backend, conv_general_dilated
from resflax.kernels.conv_params import ConvParams, channels_last

# Shapes of x and w, strides, padding, dilation, groups.
CASES = {
    "signal": ((2, 19, 4), (3, 4, 6), (1,), ((1, 1),), (1,), 1),
    "signal, strided": ((2, 19, 3), (7, 3, 8), (2,), ((3, 3),), (1,), 1),
    "signal, 1": ((2, 19, 8), (1, 8, 4), (2,), ((0, 0),), (1,), 1),
    "signal, dilated, groups": ((2, 19, 4), (3, 2, 6), (1,), ((2, 2),), (2,), 2),
    "signal, one-sided": ((2, 19, 4), (4, 4, 6), (3,), ((2, 0),), (1,), 1),
    "signal, cropped": ((2, 19, 4), (3, 4, 6), (1,), ((-2, 1),), (1,), 1),
    "volume": ((2, 4, 5, 6, 4), (3, 3, 3, 4, 6), (1, 1, 1), ((1, 1),) * 3, (1, 1, 1), 1),
    "volume, strided": ((2, 5, 6, 7, 4), (3, 3, 3, 4, 6), (2, 2, 2), ((1, 1),) * 3, (1, 1, 1), 1),
    "volume, 1": ((2, 4, 5, 6, 4), (1, 1, 1, 4, 6), (2, 2, 2), ((0, 0),) * 3, (1, 1, 1), 1),
    "volume, dilated, groups": (
        (1, 5, 6, 7, 4), (3, 3, 3, 2, 6), (1, 1, 1), ((2, 2),) * 3, (2, 2, 2), 2,
    ),
    "clip, spatial": (
        (2, 3, 8, 8, 4), (1, 3, 3, 4, 6), (1, 2, 2), ((0, 0), (1, 1), (1, 1)), (1, 1, 1), 1,
    ),
    "clip, temporal": (
        (2, 5, 4, 4, 4), (3, 1, 1, 4, 6), (2, 1, 1), ((1, 1), (0, 0), (0, 0)), (1, 1, 1), 1,
    ),
    "clip, stem": (
        (1, 4, 9, 9, 3), (3, 7, 7, 3, 8), (1, 2, 2), ((1, 1), (3, 3), (3, 3)), (1, 1, 1), 1,
    ),
    "volume, cropped": (
        (2, 6, 5, 6, 4), (3, 3, 3, 4, 6), (1, 1, 1), ((-1, 2), (1, 1), (0, -1)), (1, 1, 1), 1,
    ),
}  # fmt: skip


def convolution(case):
    """Returns the shapes of a case and its convolution."""
    x, w, strides, padding, dilation, groups = CASES[case]
    convolve = partial(
        conv_general_dilated,
        window_strides=strides,
        padding=padding,
        rhs_dilation=dilation,
        dimension_numbers=channels_last(len(strides)),
        feature_group_count=groups,
    )
    return x, w, convolve


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["xla", *CPU_BACKENDS])
@pytest.mark.parametrize("case", CASES)
def test_all_passes_match_float64(backend, case):
    x_shape, w_shape, convolve = convolution(case)
    _, _, strides, padding, dilation, groups = CASES[case]
    params = ConvParams(x_shape[1:-1], w_shape[:-2], strides, padding, dilation, groups)
    y_shape = params.result_shape("fwd", x_shape, w_shape)
    x, w, g = example_of_shapes(x_shape, w_shape, y_shape)
    with conv_backend(backend):
        y, pull_back = jax.vjp(convolve, x, w)
        dx, dw = pull_back(g)
    options = {"strides": strides, "padding": padding, "dilation": dilation, "groups": groups}
    assert_close(y, reference("fwd", x, w, y_shape, **options))
    assert_close(dx, reference("dgrad", g, w, x_shape, **options))
    assert_close(dw, reference("wgrad", x, g, w_shape, **options), 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("case", ["signal, strided", "volume, strided"])
def test_mapped_and_second_derivatives_match_lax(backend, case):
    x_shape, w_shape, convolve = convolution(case)
    x, w = example_of_shapes((3, *x_shape), (3, *w_shape))

    def second(x, w):
        def loss(x, w):
            return jnp.sum(jnp.sin(convolve(x, w)) * jnp.cos(jnp.mean(w)))

        def squared(x, w):
            return sum(jnp.sum(jnp.square(d)) for d in jax.grad(loss, (0, 1))(x, w))

        return jax.grad(squared, (0, 1))(x, w)

    with conv_backend(backend):
        mapped = jax.jit(jax.vmap(second))(x, w)
    with conv_backend("xla"):
        expected = [jax.jit(second)(*pair) for pair in zip(x, w, strict=True)]
    for i, pair in enumerate(expected):
        for actual, one in zip(mapped, pair, strict=True):
            assert_close(actual[i], np.asarray(one), 1e-4)
