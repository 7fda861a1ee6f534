"""Normalizer-free networks: scaled kernels and the variance of the signal, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.networks import run, variables_of

from resflax import UserError, create_model
from resflax.nn import Spec
from resflax.nn.activations import ACTIVATIONS
from resflax.nn.gates import input_scales
from resflax.nn.scaled_conv import GAMMAS, gamma_of, scaled_kernel
from resflax.weights import from_torch
from resflax.weights.array_specs import array_specs
from resflax.weights.mismatch import describe_network
from resflax.weights.shapes import variable_shapes
from resflax.zoo import get_spec
from resflax.zoo.cost import part_costs
from resflax.zoo.nfnet import NORMALIZER_FREE

RNG = np.random.default_rng(0)
TINY = {**NORMALIZER_FREE, "stem": "cifar", "stem_width": 16, "num_classes": 4}


def test_scaled_kernel_has_variance_gain_gamma_over_fan_in():
    kernel = 3 + RNG.standard_normal((3, 3, 8, 5))
    gain = np.array([0.5, 1.0, 2.0, 0.0, -1.0])
    scaled = np.asarray(scaled_kernel(jnp.asarray(kernel, jnp.float32), gain, 1.7))
    flat = scaled.reshape(-1, 5)
    np.testing.assert_allclose(flat.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(flat.std(0), np.abs(gain) * 1.7 / np.sqrt(72), rtol=1e-4)
    correlation = [np.corrcoef(flat[:, i], kernel[..., i].ravel())[0, 1] for i in (0, 1, 2, 4)]
    np.testing.assert_allclose(correlation, [1, 1, 1, -1], rtol=1e-5)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gamma_is_one_over_the_standard_deviation(name):
    """By the trapezoidal rule; the published constants were measured on samples."""
    x = np.linspace(-9, 9, 20_001)
    density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    y = np.asarray(ACTIVATIONS[name](jnp.asarray(x, jnp.float32)), np.float64)
    mean = np.trapezoid(y * density, x)
    expected = np.trapezoid((y - mean) ** 2 * density, x) ** -0.5
    assert gamma_of(ACTIVATIONS[name]) == pytest.approx(expected, rel=2e-3)
    assert GAMMAS.get(name) in (None, gamma_of(ACTIVATIONS[name]))


def test_gamma_of_relu_is_its_closed_form():
    """The variance of a rectified standard normal number is (1 - 1 / pi) / 2."""
    assert gamma_of(jax.nn.relu) == pytest.approx(np.sqrt(2 / (1 - 1 / np.pi)), rel=1e-3)


def test_input_scales_follow_the_expected_variance():
    """timm's loop: the variance is reset after the first block of each stage."""
    depths, alpha, expected, variance = (3, 1, 2), 0.2, [], 1.0
    for depth in depths:
        stage = []
        for block in range(depth):
            stage.append(variance**-0.5)
            variance = (1.0 if block == 0 else variance) + alpha**2
        expected.append(stage)
    for stage, other in zip(input_scales(depths, alpha), expected, strict=True):
        np.testing.assert_allclose(stage, other, rtol=1e-12)


def test_signal_keeps_the_expected_variance():
    """Brock et al. 2021, section 3: each block adds alpha^2 to a variance of 1."""
    x = RNG.standard_normal((8, 16, 16, 16)).astype(np.float32) / gamma_of(jax.nn.relu)
    for blocks in (1, 5):
        spec = Spec((blocks,), (64,), zero_init=False, **(TINY | {"stem_width": 64}))
        model = create_model(spec, features_only=True, out_indices=(1,))
        variables = model.init(jax.random.key(1), x, train=False)
        (features,) = run(lambda v, x, m=model: m.apply(v, x, train=False), variables, x)
        variance = np.asarray(features).var((0, 1, 2)).mean()
        assert variance == pytest.approx(1 + blocks * 0.2**2, rel=0.2)


def test_zero_init_sets_the_last_gain_to_zero():
    model = create_model(Spec((2,), (8,), **TINY))
    params = model.init(jax.random.key(0), np.zeros((1, 8, 8, 3)), train=False)["params"]
    gains = [params["stage1_block2"][f"conv{i}"]["gain"] for i in (1, 2, 3)]
    assert [float(np.abs(gain).max()) for gain in gains] == [1.0, 1.0, 0.0]
    assert "batch_stats" not in variables_of(model)


def test_arrays_are_recognized_by_their_names():
    spec = get_spec("nf_resnet26")
    arrays = {
        s.key: np.broadcast_to(np.float32(0), s.shape)
        for s in array_specs("timm_nf", spec, variable_shapes(spec))
    }
    assert describe_network(arrays) == "these look like nf_resnet26's"
    with pytest.raises(UserError, match="not a state dict of nf_resnet50: .*nf_resnet26's"):
        from_torch("nf_resnet50", arrays)


@pytest.mark.parametrize("ensemble", ["batch", "mimo"])
def test_ensembles_with_shared_kernels_are_refused(ensemble):
    with pytest.raises(UserError, match="conv is 'scaled_standardized'"):
        Spec((1,), (8,), "basic", "cifar", 8, conv="scaled_standardized", ensemble=ensemble,
             members=2)  # fmt: skip


def test_multiply_adds_are_those_of_plain_convolutions():
    spec = Spec((2, 1), (8, 16), **TINY)
    plain = spec.override(conv="plain", norm="batch", gate="none")
    costs = [part_costs(create_model(s, scan=False), (32, 32, 3)) for s in (spec, plain)]
    counts = [[part.multiply_adds for part in parts] for parts in costs]
    assert counts[0] == counts[1]
    assert min(counts[0]) > 0
