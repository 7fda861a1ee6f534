"""The oneDNN custom call against float64."""

from concurrent.futures import ThreadPoolExecutor

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.conv_cases import needs_onednn
from helpers.conv_reference import assert_close, normal, reference
from hypothesis import assume, given, settings

from resflax.kernels import onednn

UNIT = {"strides": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}


def output_shape(x, w, strides, padding, dilation, groups):
    """Returns the shape of conv(x, w), given the shapes of x and w."""
    extents = [(k - 1) * d + 1 for k, d in zip(w[:2], dilation, strict=True)]
    steps = [n + sum(p) - k for n, p, k in zip(x[1:3], padding, extents, strict=True)]
    return (x[0], *(n // s + 1 for n, s in zip(steps, strides, strict=True)), w[3])


def check_passes(x, w, dtype=jnp.float32, tolerance=1e-5, **options):
    options = {**UNIT, **options}
    y = output_shape(x, w, **options)
    for conv_pass, (a, b, shape) in {
        "fwd": (x, w, y),
        "dgrad": (y, w, x),
        "wgrad": (x, y, w),
    }.items():
        lhs, rhs = normal(a, dtype), normal(b, dtype, seed=1)
        actual = onednn.convolve(conv_pass, lhs, rhs, shape, **options)
        assert actual.dtype == dtype
        assert_close(actual, reference(conv_pass, lhs, rhs, shape, **options), tolerance)


def pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@pytest.mark.slow
@needs_onednn
@settings(deadline=None, max_examples=60)
@given(
    batch=st.integers(1, 3),
    size=pairs(1, 13),
    kernel=pairs(1, 5),
    widths=st.sampled_from([(1, 1), (3, 16), (16, 5), (17, 33), (32, 48), (1, 2)]),
    groups=st.sampled_from([1, 1, 2, 3, 8, 16]),
    strides=pairs(1, 3),
    padding=st.tuples(pairs(0, 3), pairs(0, 3)),
    dilation=pairs(1, 2),
)
def test_passes_match_float64(batch, size, kernel, widths, groups, strides, padding, dilation):
    x = (batch, *size, groups * widths[0])
    w = (*kernel, widths[0], groups * widths[1])
    options = {"strides": strides, "padding": padding, "dilation": dilation, "groups": groups}
    assume(min(output_shape(x, w, **options)) > 0)
    check_passes(x, w, **options)


@pytest.mark.slow
@needs_onednn
@pytest.mark.parametrize(
    ("x", "w", "options"),
    [
        ((2, 56, 56, 64), (1, 1, 64, 256), {"padding": ((0, 0), (0, 0))}),
        ((2, 28, 28, 128), (3, 3, 128, 128), {"strides": (2, 2)}),
        ((2, 65, 63, 3), (7, 7, 3, 64), {"strides": (2, 2), "padding": ((3, 3), (3, 3))}),
        ((4, 32, 32, 16), (3, 3, 16, 16), {}),
        ((2, 14, 14, 64), (3, 3, 1, 64), {"groups": 64}),
        ((2, 14, 14, 128), (3, 3, 4, 128), {"groups": 32, "strides": (2, 2)}),
    ],
)
def test_passes_match_float64_at_network_sizes(x, w, options):
    check_passes(x, w, **options)


@needs_onednn
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize("groups", [1, 4])
def test_passes_in_bfloat16(strides, groups):
    if not onednn.supports(jnp.bfloat16):
        pytest.skip("oneDNN does not support bfloat16 on this CPU")
    # 72 to 1,000 products are summed in float32 and rounded once to 8 bits: 2^-8 of the largest.
    x, w = (4, 15, 15, 32), (3, 3, 32 // groups, 48)
    check_passes(x, w, jnp.bfloat16, 2**-8, strides=strides, groups=groups)


@needs_onednn
def test_supports_float32_but_not_float16_or_integers():
    assert onednn.supports(jnp.float32)
    assert not onednn.supports(jnp.float16)
    assert not onednn.supports(jnp.int32)


X, W, Y = (2, 7, 7, 8), (3, 3, 8, 24), (2, 7, 7, 24)


@needs_onednn
@pytest.mark.parametrize(
    ("conv_pass", "a", "b", "shape"),
    [
        ("fwd", (0, 7, 7, 8), W, (0, 7, 7, 24)),
        ("dgrad", (0, 7, 7, 24), W, (0, 7, 7, 8)),
        ("wgrad", (0, 7, 7, 8), (0, 7, 7, 24), W),
        ("wgrad", (2, 0, 7, 7, 8), (2, 0, 7, 7, 24), (2, *W)),
    ],
)
def test_empty_batch_gives_zeros(conv_pass, a, b, shape):
    actual = onednn.convolve(conv_pass, jnp.ones(a), jnp.ones(b), shape, **UNIT)
    np.testing.assert_array_equal(actual, np.zeros(shape))


def same_size_conv(x, w):
    return onednn.convolve("fwd", x, w, x.shape, **UNIT)


@pytest.mark.slow
@needs_onednn
def test_convolve_runs_inside_jit_scan_and_pmap():
    n = jax.local_device_count()
    x, w = normal((n, 2, 9, 9, 16)), normal((3, 3, 16, 16)) / 12

    def twice(x, w):
        return jax.lax.scan(lambda x, _: (same_size_conv(x, w), None), x, length=2)[0]

    options = {**UNIT, "shape": x.shape[1:]}
    expected = [reference("fwd", reference("fwd", a, w, **options), w, **options) for a in x]
    actual = jax.pmap(twice, in_axes=(0, None))(x, w)
    assert_close(actual, np.stack(expected))
    assert_close(jax.jit(twice)(x[0], w), expected[0])


@needs_onednn
def test_convolve_runs_in_many_threads_at_once():
    def job(i):
        x, w = normal((2, 5 + i % 4, 9, 16), seed=i), normal((3, 3, 16, 16), seed=i)
        return same_size_conv(x, w), reference("fwd", x, w, x.shape, **UNIT)

    with ThreadPoolExecutor(8) as pool:
        for actual, expected in pool.map(job, range(64)):
            assert_close(actual, expected)


@needs_onednn
@pytest.mark.parametrize(
    ("a", "b", "shape", "options", "message"),
    [
        (X, W, (2, 7, 8, 24), {}, "oneDNN: could not create"),
        (X, W, Y, {"groups": 0}, "groups must be positive"),
        (X, W, Y[1:], {}, "an axis per stride"),
        ((3, *X), W, Y, {}, "differ in their mapped axes"),
    ],
)
def test_inconsistent_shapes_raise(a, b, shape, options, message):
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        onednn.convolve("fwd", normal(a), normal(b), shape, **{**UNIT, **options})


@needs_onednn
def test_mixed_dtypes_raise():
    with pytest.raises(jax.errors.JaxRuntimeError, match="all float32 or all bfloat16"):
        onednn.convolve("fwd", normal(X), normal(W, jnp.bfloat16), Y, **UNIT)


@needs_onednn
def test_availability_can_be_checked_inside_a_trace():
    @jax.jit
    def traced(x):
        assert onednn.unavailable_reason.__wrapped__() is None
        return x

    traced(1.0)
