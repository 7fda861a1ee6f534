"""Metrics of single examples, and their sums in an evaluation step."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.modules import LinearClassifier, random_batch, softmax

from resflax.train import create_state, make_eval_step
from resflax.train.losses import cross_entropy
from resflax.train.metrics import correct


@pytest.mark.slow
def test_eval_step_sums_by_weight():
    state = create_state(LinearClassifier(), optax.sgd(0.1), 0, (2, 2, 1))
    batch = random_batch(8)
    z = batch["image"].reshape(8, 4) @ np.asarray(state.params["head"]["kernel"], np.float64)
    weight = np.array([1, 1, 1, 0, 1, 0, 1, 0], np.float32)
    loss = -np.log(softmax(z)[np.arange(8), batch["label"]])
    sums = make_eval_step(LinearClassifier())(state, {**batch, "weight": weight})
    np.testing.assert_allclose(sums["loss"], (weight * loss).sum(), rtol=1e-5)
    np.testing.assert_allclose(sums["correct"], (weight * (z.argmax(-1) == batch["label"])).sum())
    assert float(sums["count"]) == 5


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_metrics_are_float32_for_logits_of_any_dtype(dtype):
    logits, labels = jnp.asarray([[2.0, 1.0], [0.0, 3.0]], dtype), jnp.asarray([0, 0])
    assert cross_entropy(logits, labels).dtype == jnp.float32
    np.testing.assert_array_equal(correct(logits, labels), np.float32([1, 0]))
    np.testing.assert_array_equal(correct(logits * jnp.nan, labels), np.float32([0, 0]))
