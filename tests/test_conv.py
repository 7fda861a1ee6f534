"""`resflax.kernels.conv` against float64 and `lax.conv_general_dilated`, on every road."""

from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.conv_cases import FAST, LAYERS, NHWC, REASON, every_layer, shapes_of
from helpers.conv_reference import assert_close, lowered, normal, reference
from hypothesis import assume, example, given, settings
from jax import lax

from resflax import create_model
from resflax.kernels import backend as roads
from resflax.kernels import conv, cpu_conv, onednn
from resflax.kernels.conv import conv_general_dilated
from resflax.kernels.conv_params import ConvForm


def pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


def all_readings(operands, form, road):
    @jax.jit
    def run(operands):
        return {
            reading: conv.conv_p.bind(*pair, reading=reading, form=form, road=road)
            for reading, pair in operands.items()
        }

    return run(operands)


def check_readings(x, w, road, *, dtype=jnp.float32, tolerance=1e-5, **how):
    form = ConvForm(x[1:3], w[:2], **how)
    shapes = shapes_of(form, x, w)
    operands = {
        reading: (normal(a, dtype), normal(b, dtype, seed=1))
        for reading, (a, b, _) in shapes.items()
    }
    found = all_readings(operands, form, road)
    for reading, (_, _, shape) in shapes.items():
        assert found[reading].dtype == dtype
        expected = reference(reading, *operands[reading], shape, **how)
        assert_close(found[reading], expected, tolerance)


PLAIN = {"strides": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}


@pytest.mark.parametrize("road", ["plain", *FAST])
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
@example(2, (6, 7), (1, 1), (9, 5), 1, (2, 3), ((0, 0), (0, 0)), (1, 1))  # one product
@example(2, (6, 7), (3, 3), (1, 1), 16, (2, 1), ((1, 1), (1, 1)), (1, 1))  # depthwise
@example(1, (5, 6), (3, 3), (8, 8), 1, (1, 1), ((3, 0), (0, 3)), (1, 1))  # wider than its kernel
@example(1, (5, 6), (3, 3), (8, 8), 1, (1, 1), ((3, 1), (2, 2)), (1, 1))  # XLA's own goes wrong
def test_the_three_readings_are_those_of_float64(
    road, batch, size, kernel, widths, groups, strides, padding, dilation
):
    x = (batch, *size, groups * widths[0])
    w = (*kernel, widths[0], groups * widths[1])
    how = {"strides": strides, "padding": padding, "dilation": dilation, "groups": groups}
    assume(min(ConvForm(size, kernel, **how).output) > 0)
    check_readings(x, w, road, **how)


@pytest.mark.parametrize("road", ["plain", *FAST])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
@pytest.mark.parametrize("padding", [((-1, 1), (0, -2)), ((-2, -1), (1, 3))])
def test_negative_padding_crops(road, kernel, strides, padding):
    how = {"strides": strides, "padding": padding, "dilation": (1, 1), "groups": 1}
    check_readings((2, 8, 9, 8), (kernel, kernel, 8, 10), road, **how)


@settings(deadline=None, max_examples=30)
@given(
    size=pairs(5, 13),
    kernel=pairs(1, 7),
    strides=pairs(1, 3),
    padding=st.tuples(pairs(-2, 3), pairs(-2, 3)),
    dilation=pairs(1, 3),
)
def test_the_shape_of_a_result_is_that_of_lax_even_if_it_is_empty(
    size, kernel, strides, padding, dilation
):
    x, w = jnp.zeros((2, *size, 6)), jnp.zeros((*kernel, 2, 9))
    how = (strides, padding, None, dilation, NHWC, 3)
    expected = jax.eval_shape(lambda x, w: lax.conv_general_dilated(x, w, *how), x, w)
    found = jax.eval_shape(lambda x, w: conv_general_dilated(x, w, *how), x, w)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)


@pytest.mark.parametrize("taken", [True, False])
def test_winograd_runs_in_parts_of_the_batch_only_if_these_are_many_bytes(taken, monkeypatch):
    monkeypatch.setattr(cpu_conv, "CHUNK_BYTES", 20_000 if taken else 10**9)
    x, w = (6, 9, 8, 32), (3, 3, 32, 32)
    form = ConvForm(x[1:3], w[:2], **PLAIN)
    for reading, (a, b, _) in shapes_of(form, x, w).items():
        text = lowered(
            lambda lhs, rhs, reading=reading: conv.conv_p.bind(
                lhs, rhs, reading=reading, form=form, road="cpu"
            ),
            "cpu",
            normal(a),
            normal(b),
        )
        assert ("stablehlo.while" in text) == taken
        assert text.count("stablehlo.dot_general") >= 16
        assert "stablehlo.convolution" not in text
    check_readings(x, w, "cpu", **PLAIN)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("groups", [1, 4])
def test_bfloat16_is_within_one_rounding_of_float64(road, kernel, groups):
    if road == "onednn" and not onednn.supports(jnp.bfloat16):
        pytest.skip("oneDNN has no bfloat16 on this CPU")
    padding = ((kernel // 2,) * 2,) * 2
    how = {**PLAIN, "padding": padding, "groups": groups}
    x, w = (3, 11, 10, 32), (kernel, kernel, 32 // groups, 32)
    check_readings(x, w, road, dtype=jnp.bfloat16, tolerance=2**-8, **how)


@every_layer
def test_float16_and_float64_are_computed_by_lax(road, layer):
    x, w, how = LAYERS[layer]

    def values(convolve, x, w):
        out, transpose = jax.vjp(lambda x, w: convolve(x, w, **how), x, w)
        return out, *transpose(out)

    def check(dtype):
        a, b = normal(x, dtype), normal(w, dtype)
        found = jax.jit(partial(values, conv_general_dilated))(a, b)
        expected = jax.jit(partial(values, lax.conv_general_dilated))(a, b)
        assert found[0].dtype == dtype
        jax.tree.map(np.testing.assert_array_equal, found, expected)

    check(jnp.float16)
    with jax.enable_x64(True):
        check(jnp.float64)


@every_layer
def test_an_empty_batch_has_an_empty_result_and_a_zero_gradient(road, layer):
    (_, *image), w, how = LAYERS[layer]
    x, w = jnp.zeros((0, *image)), normal(w)
    y = conv_general_dilated(x, w, **how)
    assert y.shape == jax.eval_shape(lambda: lax.conv_general_dilated(x, w, **how)).shape
    dx, dw = jax.grad(lambda x, w: conv_general_dilated(x, w, **how).sum(), (0, 1))(x, w)
    assert dx.shape == x.shape
    np.testing.assert_array_equal(dw, np.zeros(w.shape))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("resnet18", {"widths": (32,), "depths": (1,), "stem_width": 32}),
        ("resnet50", {"widths": (8,), "depths": (1,), "stem": "imagenet", "zero_init": False}),
    ],
)
def test_a_network_has_the_logits_and_gradients_of_the_plain_road(name, fields, monkeypatch):
    images, labels = normal((8, 10, 10, 3)), jnp.arange(8) % 10
    model = create_model(name, **{"stem": "cifar", "num_classes": 10, **fields})
    variables = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(0))

    def run(road):
        monkeypatch.setattr(roads, "ROAD", road)

        def value(params):
            logits, _ = model.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
            return -jnp.mean(picked), logits

        return jax.jit(jax.grad(value, has_aux=True))(variables["params"])

    expected, expected_logits = run("plain")
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    assert largest > 1e-3
    for road in ["cpu"] + ["onednn"] * (REASON is None):
        gradients, logits = run(road)
        assert_close(logits, expected_logits, 1e-4)
        for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * largest)
