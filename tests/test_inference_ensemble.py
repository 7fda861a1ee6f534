"""Ensemble predictors against `jax.vmap(model.apply)`, on every backend."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.networks import randomized

from resflax import UserError
from resflax.inference import make_ensemble_predictor
from resflax.kernels import network
from resflax.nn import Spec
from resflax.nn.ensembles import log_mean_probability
from resflax.weights.shapes import variable_shapes
from resflax.zoo import create_model, get_spec

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
SPEC = get_spec("cifar_resnet8").override(num_classes=5)


@pytest.fixture(params=["jax", "onednn"])
def backend(request):
    """Each backend; oneDNN's is skipped where it cannot run."""
    reason = network.unavailable_reason() if request.param == "onednn" else None
    if reason:
        pytest.skip(reason)
    return request.param


def variables_of_members(spec, count=3):
    return [randomized(variable_shapes(spec), seed) for seed in range(count)]


@pytest.fixture(scope="module")
def members():
    return [(SPEC, variables) for variables in variables_of_members(SPEC)]


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).standard_normal((4, 32, 32, 3), np.float32)


def reference(members, images):
    """Returns logits by `jax.vmap(model.apply)` as float64, and the log of the mean softmax."""
    model = create_model(members[0][0], scan=False)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *(v for _, v in members))
    run = jax.vmap(partial(model.apply, train=False), in_axes=(0, None))
    logits = np.asarray(jax.jit(run)(stacked, images), np.float64)
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return logits, np.log((exponentials / exponentials.sum(-1, keepdims=True)).mean(0))


def test_members_and_their_mean_equal_vmap_of_the_model(members, images, backend):
    predict = make_ensemble_predictor(members, backend=backend)
    logits, log_p = reference(members, images)
    assert predict.members(images).dtype == predict(images).dtype == jnp.float32
    np.testing.assert_allclose(predict.members(images), logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.exp(predict(images)), np.exp(log_p), atol=1e-5)
    np.testing.assert_allclose(predict(images), log_p, atol=1e-4)


def test_every_member_normalizes_pixels_itself(members, backend):
    means, stds = [MEAN, (0.1, 0.2, 0.3), MEAN], [STD, STD, (0.5, 0.5, 0.4)]
    predict = make_ensemble_predictor(members, mean=means, std=stds, backend=backend)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), np.uint8)
    expected = [
        np.exp(reference([member], ((pixels / 255 - mean) / std).astype(np.float32))[1])
        for member, mean, std in zip(members, means, stds, strict=True)
    ]
    np.testing.assert_allclose(np.exp(predict(pixels)), np.mean(expected, 0), atol=1e-5)


def test_pure_function_works_under_jit_and_vmap(members, images):
    predict = make_ensemble_predictor(members, backend="jax")
    assert predict.is_stacked
    assert {leaf.shape[0] for leaf in jax.tree.leaves(predict.arrays)} == {3}
    expected = reference(members, images)[1]
    found = jax.jit(predict.apply)(predict.arrays, images)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    halves = jax.vmap(predict.apply, in_axes=(None, 0))(
        predict.arrays, images.reshape(2, 2, 32, 32, 3)
    )
    np.testing.assert_allclose(halves.reshape(4, -1), expected, atol=1e-4)


def test_members_of_other_architectures_run_one_by_one(members, images):
    other = get_spec("cifar_resnet8").override(num_classes=5, shortcut="B", widths=(8, 16, 32))
    mixed = [members[0], (other, variables_of_members(other, 1)[0])]
    logits = [reference([member], images)[0][0] for member in mixed]
    predict = make_ensemble_predictor(mixed, backend="jax")
    assert not predict.is_stacked
    assert predict.describe_backend().endswith("; 2 members, one by one")
    np.testing.assert_allclose(predict.members(images), logits, rtol=1e-4, atol=1e-4)
    found = jax.jit(predict.apply)(predict.arrays, images)
    np.testing.assert_allclose(jnp.exp(found), jax.nn.softmax(np.stack(logits)).mean(0), atol=1e-5)


def test_backend_of_an_ensemble_runs_all_members(members):
    predict = make_ensemble_predictor(members, backend="jax")
    assert predict.describe_backend().startswith("inference: JAX")
    assert predict.describe_backend().endswith("; 3 members, as one program")
    assert (predict.size, predict.backend) == (3, "jax")


def test_log_of_the_mean_is_finite_for_extreme_logits():
    logits = jnp.array([[[0.0, -1e4]], [[-1e4, 0.0]]], jnp.float32)
    np.testing.assert_allclose(log_mean_probability(logits), np.log([[0.5, 0.5]]), rtol=1e-6)
    alone = log_mean_probability(logits[:1])
    np.testing.assert_allclose(alone, [[0.0, -1e4]], rtol=1e-6)


def test_members_need_the_same_number_of_classes(members):
    other: Spec = SPEC.override(num_classes=3)
    with pytest.raises(UserError, match="the members have 3 and 5 classes: expected the same"):
        make_ensemble_predictor([members[0], (other, variables_of_members(other, 1)[0])])
    with pytest.raises(UserError, match="expected at least one network"):
        make_ensemble_predictor([])
