import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from resflax.nn import subsample, zero_pad
from resflax.nn.shortcuts import linear, strides_between


@given(size=st.integers(1, 64), stride=st.integers(1, 2))
def test_strides_are_those_of_a_symmetrically_padded_convolution(size, stride):
    """A k x k convolution of stride s, padded by k // 2, gives ceil(size / s)."""
    out = (size + 2 * 1 - 3) // stride + 1
    (found,) = strides_between((size, 4), (out, 4))
    # On one pixel stride 2 does nothing that stride 1 does not.
    assert found == (1 if size == 1 else stride)


@settings(deadline=None, max_examples=30)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.integers(1, 4),
    extra=st.integers(0, 5),
)
def test_zero_pad_is_the_numpy_statement_of_option_a(height, width, channels, extra):
    x = np.random.default_rng(0).standard_normal((2, height, width, channels)).astype(np.float32)
    sub = x[:, ::2, ::2]
    expected = np.zeros((*sub.shape[:-1], channels + extra), np.float32)
    expected[..., extra // 2 : extra // 2 + channels] = sub
    np.testing.assert_array_equal(zero_pad(jnp.asarray(x), expected.shape), expected)


def test_zero_pad_refuses_to_narrow():
    with pytest.raises(ValueError, match="cannot narrow"):
        zero_pad(jnp.ones((1, 4, 4, 8)), (1, 4, 4, 4))


@pytest.mark.parametrize(
    ("source", "target"),
    [((4, 3), (8, 3)), ((5, 3), (4, 3)), ((4, 3), (4, 4, 3)), ((4, 4), (0, 8)), ((0, 4), (2, 4))],
)
def test_shapes_that_no_stride_connects_are_refused(source, target):
    with pytest.raises(ValueError, match="from"):
        subsample(jnp.ones(source), target)


def test_linear_keeps_the_dtype_of_its_input():
    import flax.linen as nn

    from resflax.nn import Residual

    block = Residual(lambda h: jnp.zeros((2, 4), jnp.bfloat16), linear)
    x = jnp.ones((2, 3), jnp.bfloat16)
    y, variables = block.init_with_output(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    assert variables["params"]["Ws"]["kernel"].dtype == jnp.float32
    assert isinstance(block, nn.Module)
