"""oneDNN's convolutions with a member axis, which run at the same time, against float64."""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.conv_cases import needs_onednn
from helpers.conv_reference import assert_close, normal, reference

from resflax.kernels import onednn

UNIT = {"strides": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}
PASSES = ["fwd", "dgrad", "wgrad"]
X, W, Y = (2, 7, 7, 8), (3, 3, 8, 24), (2, 7, 7, 24)
# The shapes of x, w and y, and options.
SHAPES = {
    "same": (X, W, Y, {}),
    "strided": ((2, 9, 8, 8), (3, 3, 8, 16), (2, 5, 4, 16), {"strides": (2, 2)}),
    "pointwise": ((2, 4, 4, 8), (1, 1, 8, 12), (2, 4, 4, 12), {"padding": ((0, 0), (0, 0))}),
    "groups": ((2, 6, 7, 8), (3, 3, 2, 12), (2, 6, 7, 12), {"groups": 4}),
    "depthwise": ((2, 6, 6, 16), (3, 3, 1, 16), (2, 3, 3, 16), {"groups": 16, "strides": (2, 2)}),
    "dilated": (X, W, Y, {"dilation": (2, 2), "padding": ((2, 2), (2, 2))}),
    # Enough operations that a member left over runs on all threads.
    "large": ((8, 16, 16, 64), (3, 3, 64, 64), (8, 16, 16, 64), {}),
}


def operands(conv_pass, members, x, w, y):
    """Returns the stacked operands of a pass and the shape of one member's result."""
    a, b, shape = {"fwd": (x, w, y), "dgrad": (y, w, x), "wgrad": (x, y, w)}[conv_pass]
    return normal((members, *a)), normal((members, *b), seed=1), shape


def expected_of(conv_pass, lhs, rhs, shape, options):
    return np.stack(
        [reference(conv_pass, a, b, shape, **options) for a, b in zip(lhs, rhs, strict=True)]
    )


@needs_onednn
@pytest.mark.parametrize("members", [1, 2, 5])
@pytest.mark.parametrize("conv_pass", PASSES)
@pytest.mark.parametrize("case", SHAPES)
def test_members_match_float64(case, conv_pass, members):
    *shapes, options = SHAPES[case]
    options = {**UNIT, **options}
    lhs, rhs, shape = operands(conv_pass, members, *shapes)
    actual = onednn.convolve(conv_pass, lhs, rhs, (members, *shape), **options)
    assert_close(actual, expected_of(conv_pass, lhs, rhs, shape, options))


@needs_onednn
@pytest.mark.parametrize("conv_pass", PASSES)
def test_members_in_bfloat16_match_float64(conv_pass):
    if not onednn.supports(jnp.bfloat16):
        pytest.skip("oneDNN does not support bfloat16 on this CPU")
    lhs, rhs, shape = operands(conv_pass, 3, *SHAPES["same"][:3])
    lhs, rhs = lhs.astype(jnp.bfloat16), rhs.astype(jnp.bfloat16)
    actual = onednn.convolve(conv_pass, lhs, rhs, (3, *shape), **UNIT)
    assert_close(actual, expected_of(conv_pass, lhs, rhs, shape, UNIT), 2**-8)


@needs_onednn
@pytest.mark.parametrize("conv_pass", PASSES)
def test_members_have_the_same_bits_in_every_call(conv_pass):
    lhs, rhs, shape = operands(conv_pass, 7, *SHAPES["same"][:3])
    run = jax.jit(lambda a, b: onednn.convolve(conv_pass, a, b, (7, *shape), **UNIT))
    first = run(lhs, rhs)
    for _ in range(20):  # which thread runs which member differs
        np.testing.assert_array_equal(run(lhs, rhs), first)


@needs_onednn
def test_members_of_many_calls_at_once_match_float64():
    def job(i):
        x, w = normal((5, 2, 5 + i % 4, 9, 16), seed=i), normal((5, 3, 3, 16, 16), seed=i)
        actual = onednn.convolve("fwd", x, w, x.shape, **UNIT)
        return actual, expected_of("fwd", x, w, x.shape[1:], UNIT)

    with ThreadPoolExecutor(16) as pool:
        for actual, expected in pool.map(job, range(64)):
            assert_close(actual, expected)


@needs_onednn
def test_members_on_all_virtual_devices_match_float64():
    n = jax.local_device_count()
    x, w = normal((n, 3, 2, 9, 9, 16)), normal((3, 3, 3, 16, 16), seed=1)
    actual = jax.pmap(
        lambda x, w: onednn.convolve("fwd", x, w, x.shape, **UNIT), in_axes=(0, None)
    )(x, w)
    assert_close(actual, np.stack([expected_of("fwd", a, w, a.shape[1:], UNIT) for a in x]))


@needs_onednn
def test_inconsistent_shapes_of_members_raise():
    x, w = normal((3, *X)), normal((3, *W))
    with pytest.raises(jax.errors.JaxRuntimeError, match="oneDNN: could not create"):
        onednn.convolve("fwd", x, w, (3, 2, 7, 8, 24), **UNIT)
