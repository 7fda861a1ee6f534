"""Shortcuts against NumPy in float64."""

import flax.linen as nn
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.networks import run
from hypothesis import given, settings

from resflax.nn import BlockGeometry, Residual, make_ops, subsample, zero_pad
from resflax.nn.shortcuts import SHORTCUTS, linear_projection, strides_between


@given(size=st.integers(1, 64), stride=st.integers(1, 2))
def test_strides_match_a_symmetrically_padded_convolution(size, stride):
    """A k x k convolution with stride s, padded by k // 2, has output size ceil(size / s)."""
    out = (size + 2 * 1 - 3) // stride + 1
    (found_stride,) = strides_between((size, 4), (out, 4))
    # On one pixel, strides 1 and 2 are the same.
    assert found_stride == (1 if size == 1 else stride)


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.integers(1, 4),
    extra=st.integers(0, 5),
)
def test_zero_pad_is_option_a_in_numpy(height, width, channels, extra):
    x = np.random.default_rng(0).standard_normal((2, height, width, channels)).astype(np.float32)
    sub = x[:, ::2, ::2]
    expected = np.zeros((*sub.shape[:-1], channels + extra), np.float32)
    expected[..., extra // 2 : extra // 2 + channels] = sub
    np.testing.assert_array_equal(zero_pad(jnp.asarray(x), expected.shape), expected)


def test_zero_pad_to_fewer_channels_raises():
    with pytest.raises(ValueError, match="cannot reduce the number of channels"):
        zero_pad(jnp.ones((1, 4, 4, 8)), (1, 4, 4, 4))


@pytest.mark.parametrize(
    ("source", "target"),
    [((4, 3), (8, 3)), ((5, 3), (4, 3)), ((4, 3), (4, 4, 3)), ((4, 4), (0, 8)), ((0, 4), (2, 4))],
)
def test_subsample_without_matching_strides_raises(source, target):
    with pytest.raises(ValueError, match=r"cannot change the rank|no strides map"):
        subsample(jnp.ones(source), target)


def test_linear_projection_has_the_dtype_of_its_input():
    block = Residual(lambda h: jnp.zeros((2, 4), jnp.bfloat16), linear_projection)
    x = jnp.ones((2, 3), jnp.bfloat16)
    y, variables = block.init_with_output(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    assert variables["params"]["Ws"]["kernel"].dtype == jnp.float32
    assert isinstance(block, nn.Module)


class Shortcut(nn.Module):
    """A row of `SHORTCUTS` as a module, from an image to 6 channels."""

    option: str
    geometry: BlockGeometry

    @nn.compact
    def __call__(self, h):
        ops = make_ops(train=False, dtype=h.dtype)
        sizes = (-(-size // self.geometry.stride) for size in h.shape[1:3])
        make = SHORTCUTS[self.option].make
        return make(ops, self.geometry, norm=False)(h, (h.shape[0], *sizes, 6))


def windows(h, size, stride, dilation, low):
    """Returns the windows of a zero-padded image, with `low` zeros before it."""
    extent = (size - 1) * dilation
    h = np.pad(h, ((0, 0), (low, extent - low), (low, extent - low), (0, 0)))
    view = np.lib.stride_tricks.sliding_window_view(h, (extent + 1,) * 2, axis=(1, 2))
    return view[:, ::stride, ::stride, ..., ::dilation, ::dilation]


def reference_pooled(h, w, geometry):
    """Tong He et al. 2018, figure 2e: averages 2x2 pixels, or fewer at an odd edge."""
    if geometry.stride == 1 and geometry.dilation == 1:
        return h @ w[0, 0]
    stride = geometry.stride
    sums, ones = (windows(a, 2, stride, 1, 0).sum((-2, -1)) for a in (h, np.ones_like(h)))
    return sums / (ones if stride > 1 else 4) @ w[0, 0]


def reference_projection(h, w, geometry):
    dilation = geometry.in_dilation
    low = len(w) // 2 * dilation
    return np.einsum("nhwcij,ijco->nhwo", windows(h, len(w), geometry.stride, dilation, low), w)


REFERENCES = {
    "B": reference_projection,
    "B3": reference_projection,
    "C": reference_projection,
    "D": reference_pooled,
}


@pytest.mark.parametrize(
    "geometry", [BlockGeometry(), BlockGeometry(2), BlockGeometry(1, 1, 2), BlockGeometry(1, 2, 4)]
)
@pytest.mark.parametrize("option", REFERENCES)
def test_projections_are_their_numpy_references(option, geometry):
    shortcut = Shortcut(option, geometry)
    h = np.random.default_rng(0).standard_normal((2, 7, 6, 4))
    x = jnp.asarray(h, jnp.float32)
    params = jax.eval_shape(lambda: shortcut.init(jax.random.key(0), x))["params"]
    side = 3 if option == "B3" and geometry != BlockGeometry() else 1
    assert jax.tree.map(jnp.shape, params) == {"Ws": {"kernel": (side, side, 4, 6)}}
    w = np.random.default_rng(1).standard_normal((side, side, 4, 6))
    found = run(shortcut.apply, {"params": {"Ws": {"kernel": jnp.asarray(w, jnp.float32)}}}, x)
    np.testing.assert_allclose(found, REFERENCES[option](h, w, geometry), rtol=1e-4, atol=1e-4)
