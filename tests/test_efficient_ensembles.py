"""Efficient ensembles in one network against the single networks that their members are."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resflax import create_model
from resflax.errors import UserError
from resflax.nn import Spec, stack_params
from resflax.nn.ensembles import log_mean_softmax
from resflax.train import create_state, make_train_step
from resflax.train.metrics import correct, cross_entropy

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(8, 8, 8, 3)), jnp.float32)
LABELS = jnp.arange(8) % 5
KEYS = jax.random.split(jax.random.key(5), 8)
TINY = {"depths": (1, 2), "widths": (8, 16), "block": "basic", "stem": "cifar", "stem_width": 8}
ENSEMBLES = {
    "batch": {"ensemble": "batch", "members": 3},
    "packed": {"ensemble": "packed", "members": 2, "alpha": 2.0},
    "mimo": {"ensemble": "mimo", "members": 3, "batch_repetition": 2, "input_repetition": 0.25},
}
every_ensemble = pytest.mark.parametrize("kind", ENSEMBLES)


def make(**overrides):
    return create_model(Spec(**TINY, num_classes=5), **overrides)


def init(model, seed=0):
    """Returns variables with random values everywhere, batch statistics and biases included."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGES[:1], train=False))
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        values = rng.normal(size=leaf.shape)
        return jnp.asarray(np.abs(values) + 0.5 if path[-1].key == "var" else values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def train_logits(model, variables, images=IMAGES, keys=KEYS):
    kwargs = {"dropout_keys": keys} if model.needs_rng else {}
    return model.apply(variables, images, train=True, mutable=["batch_stats"], **kwargs)


def assert_close(found, expected, tolerance=1e-4):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)
