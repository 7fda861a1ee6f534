"""Dtypes of what a network returns, and of what steps make of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.networks import variables_of

from resflax import create_model
from resflax.train import create_state, make_train_step
from resflax.train.eval_step import make_predict_step

NAME, SHAPE = "cifar_resnet8", (8, 8, 3)
DTYPES = ["float32", "bfloat16", "float16"]


def result_dtypes(model, *, train=False):
    """Returns the dtypes of a network's results, and of the collections that it updates."""
    image = jax.ShapeDtypeStruct((2, *SHAPE), np.float32)

    def call(variables, x):
        return model.apply(variables, x, train=train, mutable=["batch_stats"])

    y, updated = jax.eval_shape(call, variables_of(model, (2, *SHAPE)), image)
    return [{leaf.dtype.name for leaf in jax.tree.leaves(tree)} for tree in (y, updated)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "options",
    [{}, {"num_classes": 0}, {"features_only": True}, {"norm": "group", "widths": (32, 32, 32),
      "stem_width": 32}, {"preact": True, "scan": True, "remat": True}],
    ids=["logits", "pooled features", "feature maps", "group norm", "preact scan"],
)  # fmt: skip
def test_results_have_the_compute_dtype(options, dtype):
    """Statistics stay float32."""
    for train in (False, True):
        results, statistics = result_dtypes(create_model(NAME, dtype=dtype, **options), train=train)
        assert results == {dtype}
        assert statistics <= {"float32"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_mean_probabilities_of_members_are_float32(dtype):
    model = create_model(NAME, dtype=dtype, ensemble="batch", members=2)
    assert result_dtypes(model)[0] == {"float32"}
    assert result_dtypes(model, train=True)[0] == {dtype}


def test_steps_return_float32_for_a_network_in_bfloat16():
    model, optimizer = create_model(NAME, dtype="bfloat16"), optax.sgd(0.1)

    def run():
        state = create_state(model, optimizer, 0, SHAPE)
        images, label = jnp.zeros((2, *SHAPE)), jnp.zeros(2, jnp.int32)
        batch = {"image": images, "label": label, "weight": jnp.ones(2)}
        _, metrics = make_train_step(model, optimizer)(state, batch)
        return metrics, make_predict_step(model)(state, batch)["logits"]

    assert {leaf.dtype.name for leaf in jax.tree.leaves(jax.eval_shape(run))} == {"float32"}
