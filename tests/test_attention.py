"""What scales a branch's channels, against the papers' equations in NumPy and float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.conv_reference import assert_close
from helpers.networks import randomised, run

from resflax.nn.attention import ATTENTION, eca_kernel
from resflax.nn.layers import make_ops


class ConvRow(nn.Module):
    """A row of `ATTENTION` on its own."""

    attention: str
    channels: int

    @nn.compact
    def __call__(self, x):
        ops = make_ops(train=False, dtype=x.dtype)
        return ATTENTION[self.attention](ops, x, self.channels)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def case(attention, channels, kept=None, dtype=jnp.float32):
    """Its value, its parameters in float64, and the image."""
    layer = ConvRow(attention, channels)
    x = np.random.default_rng(0).standard_normal((2, 5, 4, kept or channels)) + 0.5
    x = jnp.asarray(x, dtype)
    tree = randomised(jax.eval_shape(lambda: layer.init(jax.random.key(0), x)))
    found = run(layer.apply, tree, x)
    assert found.dtype == dtype
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree.get("params", {}))
    return found, wide, np.asarray(x, np.float64)


@pytest.mark.parametrize(
    ("attention", "channels", "units"),
    # A sixteenth, a quarter (ResNet-RS), to the nearest multiple of eight, of which there is one.
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
def test_squeeze_and_excitation_is_equation_3(attention, channels, units):
    """Hu et al. 2017: s = sigmoid(W2 relu(W1 z)), z the mean over pixels; x scaled by s."""
    found, p, x = case(attention, channels)
    assert p["se_fc1"]["kernel"].shape == (channels, units)
    z = x.mean((1, 2))
    h = np.maximum(z @ p["se_fc1"]["kernel"] + p["se_fc1"]["bias"], 0)
    s = sigmoid(h @ p["se_fc2"]["kernel"] + p["se_fc2"]["bias"])
    assert_close(found, x * s[:, None, None], 1e-6)


@pytest.mark.parametrize(("channels", "kept"), [(64, None), (256, None), (2048, None), (256, 19)])
def test_efficient_channel_attention_is_a_convolution_along_the_channels(channels, kept):
    """Wang et al. 2019, eq. 6 and 7: each channel's neighbours, zeros beyond the last."""
    found, p, x = case("eca", channels, kept)
    kernel = p["eca_conv"]["kernel"][:, 0, 0]
    assert set(p["eca_conv"]) == {"kernel"}
    assert len(kernel) == eca_kernel(channels)
    half = len(kernel) // 2
    z = np.pad(x.mean((1, 2)), ((0, 0), (half, half)))
    gate = np.lib.stride_tricks.sliding_window_view(z, len(kernel), axis=1) @ kernel
    assert_close(found, x * sigmoid(gate)[:, None, None], 1e-6)


@pytest.mark.parametrize("channels", [16, 48, 64, 128, 256, 512, 1024, 2048, 4096])
def test_the_kernel_is_the_odd_number_nearest_above_equation_12(channels):
    """|log2(C) / 2 + 1 / 2| rounded down to an integer, up to the next odd one; at least 3."""
    whole = int(np.log2(channels) / 2 + 0.5)
    assert eca_kernel(channels) == max(3, whole | 1)


@pytest.mark.parametrize("attention", ATTENTION)
def test_half_precision_loses_but_its_own_rounding(attention):
    found, _, x = case(attention, 64, dtype=jnp.bfloat16)
    layer = ConvRow(attention, 64)
    x = jnp.asarray(x, jnp.float32)
    tree = randomised(jax.eval_shape(lambda: layer.init(jax.random.key(0), x)))
    assert_close(found, np.asarray(layer.apply(tree, x)), 2**-6)


def test_none_is_the_identity_and_owns_nothing():
    found, p, x = case("none", 8)
    assert p == {}
    np.testing.assert_array_equal(found, x)
