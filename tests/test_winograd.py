"""Winograd's F(2x2, 3x3) against float64, and when it is used."""

from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.conv_reference import assert_close, normal, reference
from hypothesis import assume, example, given, settings

from resflax.kernels import cpu_conv, winograd
from resflax.kernels.conv_params import ConvParams

UNIT = {"strides": (1, 1), "dilation": (1, 1), "groups": 1}


def pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@pytest.mark.slow
@settings(deadline=None, max_examples=4)
@given(
    batch=st.integers(1, 3),
    size=pairs(1, 12),
    widths=pairs(1, 40),
    padding=st.tuples(pairs(0, 2), pairs(0, 2)),
)
@example(2, (3, 3), (1, 1), ((0, 0), (0, 0)))  # one output pixel: a quarter of a tile
@example(1, (1, 1), (3, 2), ((2, 2), (2, 2)))
@example(2, (8, 7), (5, 4), ((1, 1), (1, 1)))
@example(2, (7, 8), (32, 33), ((0, 1), (2, 0)))
def test_convolution_and_kernel_gradient_match_float64(batch, size, widths, padding):
    params = ConvParams(size, (3, 3), padding=padding, **UNIT)
    assume(min(params.output_size) > 0)
    x, w = (batch, *size, widths[0]), (3, 3, *widths)
    shape = params.result_shape("fwd", x, w)
    image, kernel, g = normal(x), normal(w, seed=1), normal(shape, seed=2)

    @jax.jit
    def both(x, w, g):
        return (
            winograd.convolve(x, w, padding=padding),
            winograd.kernel_gradient(x, g, padding=padding),
        )

    options = {**UNIT, "padding": padding}
    y, dw = both(image, kernel, g)
    assert_close(y, reference("fwd", image, kernel, shape, **options))
    assert_close(dw, reference("wgrad", image, g, w, **options))


@pytest.mark.slow
def test_kernel_gradient_is_the_transpose_of_the_convolution():
    x, g = normal((2, 5, 6, 7)), normal((2, 5, 6, 3), seed=1)
    padding = ((1, 1), (1, 1))
    convolve = partial(winograd.convolve, x, padding=padding)
    (expected,) = jax.linear_transpose(convolve, jax.ShapeDtypeStruct((3, 3, 7, 3), x.dtype))(g)
    assert_close(winograd.kernel_gradient(x, g, padding=padding), expected)


def test_convolution_is_sixteen_products_of_quarter_size():
    x, w = jnp.ones((2, 8, 6, 5)), jnp.ones((3, 3, 5, 7))
    jaxpr = jax.make_jaxpr(partial(winograd.convolve, padding=((1, 1), (1, 1))))(x, w)
    products = [
        eqn.outvars[0].aval.shape
        for eqn in jaxpr.eqns
        if eqn.primitive.name == "dot_general" and eqn.outvars[0].aval.ndim == 4
        if eqn.outvars[0].aval.shape[0] == 2
    ]
    assert products == [(2, 4, 3, 7)] * 16


@pytest.mark.parametrize("pixels", [7, 8192, 8193, 8194])
def test_channel_outer_product_matches_float64(pixels):
    a, b = normal((pixels, 3)), normal((pixels, 5), seed=1)
    expected = np.einsum("pa,pb->ab", *(np.asarray(m, np.float64) for m in (a, b)))
    assert_close(winograd.channel_outer_product(a, b), expected)


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "chunks"), [(6, 6), (7, 7), (8, 4), (8, 1)])
def test_chunked_batch_matches_float64(batch, chunks, monkeypatch):
    x, w = (batch, 7, 6, 32), (3, 3, 32, 32)
    image_bytes = 4 * np.prod(x[1:])
    monkeypatch.setattr(cpu_conv, "CHUNK_BYTES", int(image_bytes * batch / chunks))
    params = ConvParams(x[1:3], w[:2], padding=((1, 1), (1, 1)), **UNIT)
    image, kernel, g = normal(x), normal(w, seed=1), normal((*x[:3], 32), seed=2)
    assert cpu_conv._num_chunks(image) == chunks
    options = {**UNIT, "padding": params.padding}
    run = jax.jit(
        lambda conv_pass, a, b: cpu_conv.convolve(conv_pass, a, b, params, chunked=True),
        static_argnums=0,
    )
    assert_close(run("fwd", image, kernel), reference("fwd", image, kernel, g.shape, **options))
    assert_close(run("dgrad", g, kernel), reference("dgrad", g, kernel, x, **options))
    assert_close(run("wgrad", image, g), reference("wgrad", image, g, w, **options))
    loops = str(jax.make_jaxpr(partial(run, "wgrad"))(image, g)).count("scan[")
    assert loops == (chunks > 1)


@pytest.mark.parametrize(
    ("channels", "features", "batch", "is_used"),
    [(32, 32, 4, True), (31, 32, 9, False), (32, 31, 9, False), (32, 32, 3, False)],
)
def test_winograd_needs_32_channels_and_8_pixels_per_channel(channels, features, batch, is_used):
    params = ConvParams((8, 8), (3, 3), padding=((1, 1), (1, 1)), **UNIT)
    x, w = jnp.ones((batch, 8, 8, channels)), jnp.ones((3, 3, channels, features))
    run = partial(cpu_conv.convolve, "fwd", params=params, chunked=True)
    text = str(jax.make_jaxpr(run)(x, w))
    assert (text.count("dot_general[") >= 16) == is_used
    assert ("conv_general_dilated[" in text) != is_used
