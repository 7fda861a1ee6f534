"""`resflax.kernels.conv` against float64 and `lax.conv_general_dilated`, on every CPU backend."""

from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.conv_cases import (
    CPU_BACKENDS,
    LAYERS,
    NHWC,
    UNAVAILABLE_REASON,
    every_layer,
    pass_shapes,
)
from helpers.conv_reference import assert_close, lowered, normal, reference
from hypothesis import assume, example, given, settings
from jax import lax

from resflax import create_model
from resflax.kernels import conv, conv_backend, conv_general_dilated, cpu_conv, onednn
from resflax.kernels.conv_params import ConvParams


def pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


def run_passes(operands, params, backend):
    @jax.jit
    def run(operands):
        return {
            conv_pass: conv.conv_p.bind(*pair, conv_pass=conv_pass, params=params, backend=backend)
            for conv_pass, pair in operands.items()
        }

    return run(operands)


def check_passes(x, w, backend, *, dtype=jnp.float32, tolerance=1e-5, **options):
    params = ConvParams(x[1:3], w[:2], **options)
    shapes = pass_shapes(params, x, w)
    operands = {
        conv_pass: (normal(a, dtype), normal(b, dtype, seed=1))
        for conv_pass, (a, b, _) in shapes.items()
    }
    actual = run_passes(operands, params, backend)
    for conv_pass, (_, _, shape) in shapes.items():
        assert actual[conv_pass].dtype == dtype
        expected = reference(conv_pass, *operands[conv_pass], shape, **options)
        assert_close(actual[conv_pass], expected, tolerance)


UNIT = {"strides": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["xla", *CPU_BACKENDS])
@settings(deadline=None, max_examples=15)
@given(
    batch=st.integers(1, 3),
    size=pairs(1, 13),
    kernel=st.sampled_from([(k, k) for k in (1, 1, 2, 3, 3, 5, 7)] + [(1, 3), (3, 1)]),
    widths=st.sampled_from([(1, 1), (3, 16), (16, 5), (8, 9), (40, 32), (1, 2)]),
    groups=st.sampled_from([1, 1, 1, 2, 8]),
    strides=pairs(1, 3),
    padding=st.tuples(pairs(0, 3), pairs(0, 3)),
    dilation=pairs(1, 2),
)
@example(4, (9, 8), (3, 3), (32, 32), 1, (1, 1), ((1, 1), (1, 1)), (1, 1))  # Winograd
@example(3, (11, 13), (3, 3), (33, 40), 1, (1, 1), ((0, 2), (2, 1)), (1, 1))
@example(2, (6, 7), (1, 1), (9, 5), 1, (2, 3), ((0, 0), (0, 0)), (1, 1))  # one matrix product
@example(2, (6, 7), (3, 3), (1, 1), 16, (2, 1), ((1, 1), (1, 1)), (1, 1))  # depthwise
@example(1, (5, 6), (3, 3), (8, 8), 1, (1, 1), ((3, 0), (0, 3)), (1, 1))  # more than the kernel
@example(1, (5, 6), (3, 3), (8, 8), 1, (1, 1), ((3, 1), (2, 2)), (1, 1))  # XLA:CPU is wrong here
def test_passes_match_float64(
    backend, batch, size, kernel, widths, groups, strides, padding, dilation
):
    x = (batch, *size, groups * widths[0])
    w = (*kernel, widths[0], groups * widths[1])
    options = {"strides": strides, "padding": padding, "dilation": dilation, "groups": groups}
    assume(min(ConvParams(size, kernel, **options).output_size) > 0)
    check_passes(x, w, backend, **options)


@pytest.mark.parametrize("backend", ["xla", *CPU_BACKENDS])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
@pytest.mark.parametrize("padding", [((-1, 1), (0, -2)), ((-2, -1), (1, 3))])
def test_negative_padding_crops(backend, kernel, strides, padding):
    options = {"strides": strides, "padding": padding, "dilation": (1, 1), "groups": 1}
    check_passes((2, 8, 9, 8), (kernel, kernel, 8, 10), backend, **options)


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(
    size=pairs(5, 13),
    kernel=pairs(1, 7),
    strides=pairs(1, 3),
    padding=st.tuples(pairs(-2, 3), pairs(-2, 3)),
    dilation=pairs(1, 3),
)
def test_output_shape_matches_lax_even_if_empty(size, kernel, strides, padding, dilation):
    x, w = jnp.zeros((2, *size, 6)), jnp.zeros((*kernel, 2, 9))
    options = (strides, padding, None, dilation, NHWC, 3)
    expected = jax.eval_shape(lambda x, w: lax.conv_general_dilated(x, w, *options), x, w)
    actual = jax.eval_shape(lambda x, w: conv_general_dilated(x, w, *options), x, w)
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)


@pytest.mark.slow
@pytest.mark.parametrize("is_chunked", [True, False])
def test_winograd_splits_only_large_batches(is_chunked, monkeypatch):
    monkeypatch.setattr(cpu_conv, "CHUNK_BYTES", 20_000 if is_chunked else 10**9)
    x, w = (6, 9, 8, 32), (3, 3, 32, 32)
    params = ConvParams(x[1:3], w[:2], **UNIT)
    for conv_pass, (a, b, _) in pass_shapes(params, x, w).items():
        run = partial(conv.conv_p.bind, conv_pass=conv_pass, params=params, backend="cpu")
        text = lowered(run, "cpu", normal(a), normal(b))
        assert ("stablehlo.while" in text) == is_chunked
        assert text.count("stablehlo.dot_general") >= 16
        assert "stablehlo.convolution" not in text
    check_passes(x, w, "cpu", **UNIT)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("groups", [1, 4])
def test_bfloat16_is_within_one_rounding_of_float64(backend, kernel, groups):
    if backend == "onednn" and not onednn.supports(jnp.bfloat16):
        pytest.skip("oneDNN does not support bfloat16 on this CPU")
    padding = ((kernel // 2,) * 2,) * 2
    options = {**UNIT, "padding": padding, "groups": groups}
    x, w = (3, 11, 10, 32), (kernel, kernel, 32 // groups, 32)
    check_passes(x, w, backend, dtype=jnp.bfloat16, tolerance=2**-8, **options)


@pytest.mark.slow
@every_layer
def test_float16_and_float64_are_computed_by_lax(backend, layer):
    x, w, options = LAYERS[layer]

    def output_and_gradients(convolve, x, w):
        out, transpose = jax.vjp(lambda x, w: convolve(x, w, **options), x, w)
        return out, *transpose(out)

    def check(dtype):
        a, b = normal(x, dtype), normal(w, dtype)
        actual = jax.jit(partial(output_and_gradients, conv_general_dilated))(a, b)
        expected = jax.jit(partial(output_and_gradients, lax.conv_general_dilated))(a, b)
        assert actual[0].dtype == dtype
        jax.tree.map(np.testing.assert_array_equal, actual, expected)

    check(jnp.float16)
    with jax.enable_x64(True):
        check(jnp.float64)


@every_layer
def test_empty_batch_has_empty_result_and_zero_gradient(backend, layer):
    (_, *image), w, options = LAYERS[layer]
    x, w = jnp.zeros((0, *image)), normal(w)
    y = conv_general_dilated(x, w, **options)
    assert y.shape == jax.eval_shape(lambda: lax.conv_general_dilated(x, w, **options)).shape
    dx, dw = jax.grad(lambda x, w: conv_general_dilated(x, w, **options).sum(), (0, 1))(x, w)
    assert dx.shape == x.shape
    np.testing.assert_array_equal(dw, np.zeros(w.shape))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("resnet18", {"widths": (32,), "depths": (1,), "stem_width": 32}),
        ("resnet50", {"widths": (8,), "depths": (1,), "stem": "imagenet", "zero_init": False}),
    ],
)
def test_network_logits_and_gradients_match_the_xla_backend(name, overrides):
    images, labels = normal((8, 10, 10, 3)), jnp.arange(8) % 10
    model = create_model(name, **{"stem": "cifar", "num_classes": 10, **overrides})
    variables = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(0))

    def run(backend):
        def loss(params):
            logits, _ = model.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
            return -jnp.mean(picked), logits

        with conv_backend(backend):
            return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    expected, expected_logits = run("xla")
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    assert largest > 1e-3
    for backend in ["cpu"] + ["onednn"] * (UNAVAILABLE_REASON is None):
        gradients, logits = run(backend)
        assert_close(logits, expected_logits, 1e-4)
        for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * largest)
