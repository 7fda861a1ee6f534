"""Channel attention, against the papers' equations in NumPy and float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.conv_reference import assert_close
from helpers.networks import randomized, run

from resflax.nn.attention import ATTENTION, eca_kernel_size
from resflax.nn.layers import make_ops


class Attention(nn.Module):
    """A row of `ATTENTION` as a module."""

    attention: str
    channels: int

    @nn.compact
    def __call__(self, x):
        ops = make_ops(train=False, dtype=x.dtype)
        return ATTENTION[self.attention](ops, x, self.channels)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def run_attention(attention, channels, pruned_to=None, dtype=jnp.float32):
    """Returns the output, and parameters and input in float64."""
    module = Attention(attention, channels)
    x = np.random.default_rng(0).standard_normal((2, 5, 4, pruned_to or channels)) + 0.5
    x = jnp.asarray(x, dtype)
    tree = randomized(jax.eval_shape(lambda: module.init(jax.random.key(0), x)))
    y = run(module.apply, tree, x)
    assert y.dtype == dtype
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree.get("params", {}))
    return y, params, np.asarray(x, np.float64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attention", "channels", "units"),
    # A sixteenth or a quarter (ResNet-RS), rounded to a multiple of 8, at least 8.
    [
        ("se", 256, 16),
        ("se", 2048, 128),
        ("se", 64, 8),
        ("se", 160, 8),
        ("se", 192, 16),
        ("se_rs", 256, 64),
        ("se_rs", 16, 8),
        ("se_rs", 80, 24),
    ],
)
def test_squeeze_excite_is_equation_3(attention, channels, units):
    """Hu et al. 2017: `x` times s = sigmoid(W2 relu(W1 z)), with z the mean over pixels."""
    y, p, x = run_attention(attention, channels)
    assert p["se_fc1"]["kernel"].shape == (channels, units)
    z = x.mean((1, 2))
    h = np.maximum(z @ p["se_fc1"]["kernel"] + p["se_fc1"]["bias"], 0)
    s = sigmoid(h @ p["se_fc2"]["kernel"] + p["se_fc2"]["bias"])
    assert_close(y, x * s[:, None, None], 1e-6)


@pytest.mark.parametrize(
    ("channels", "pruned_to"), [(64, None), (256, None), (2048, None), (256, 19)]
)
def test_efficient_channel_is_a_convolution_over_channels(channels, pruned_to):
    """Wang et al. 2019, eq. 6 and 7: a zero-padded convolution over neighboring channels."""
    y, p, x = run_attention("eca", channels, pruned_to)
    kernel = p["eca_conv"]["kernel"][:, 0, 0]
    assert set(p["eca_conv"]) == {"kernel"}
    assert len(kernel) == eca_kernel_size(channels)
    half = len(kernel) // 2
    z = np.pad(x.mean((1, 2)), ((0, 0), (half, half)))
    gate = np.lib.stride_tricks.sliding_window_view(z, len(kernel), axis=1) @ kernel
    assert_close(y, x * sigmoid(gate)[:, None, None], 1e-6)


@pytest.mark.parametrize("channels", [16, 48, 64, 128, 256, 512, 1024, 2048, 4096])
def test_eca_kernel_size_is_equation_12_rounded_to_odd(channels):
    """log2(C) / 2 + 1 / 2, rounded down to an integer, then up to an odd one; at least 3."""
    size = int(np.log2(channels) / 2 + 0.5)
    assert eca_kernel_size(channels) == max(3, size | 1)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ATTENTION)
def test_half_precision_is_within_its_rounding_error(attention):
    y, _, x = run_attention(attention, 64, dtype=jnp.bfloat16)
    module = Attention(attention, 64)
    x = jnp.asarray(x, jnp.float32)
    tree = randomized(jax.eval_shape(lambda: module.init(jax.random.key(0), x)))
    assert_close(y, np.asarray(module.apply(tree, x)), 2**-6)


def test_none_is_the_identity_without_parameters():
    y, p, x = run_attention("none", 8)
    assert p == {}
    np.testing.assert_array_equal(y, x)
