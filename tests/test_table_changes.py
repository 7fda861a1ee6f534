"""Rows of tables that change in a session: nothing returns the network of the old row."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from helpers.networks import variables_of

from resflax import create_model
from resflax.nn import BLOCKS, ResNet
from resflax.nn.attention import ATTENTION
from resflax.nn.layers import CONVS
from resflax.nn.shortcuts import SHORTCUTS
from resflax.nn.stems import STEMS
from resflax.train import create_state, recompute_batch_stats
from resflax.weights.shapes import variable_shapes
from resflax.zoo import get_spec

NAME, SHAPE, OPTIMIZER = "cifar_resnet8", (8, 8, 3), optax.sgd(0.1)
TINY = {"depths": (1,), "widths": (8,), "stem_width": 8}
FIRST, *OTHERS = BLOCKS["basic"]
STEM = STEMS["cifar"]
WIDE_STEM = STEM._replace(convs=(STEM.convs[0]._replace(kernel=5),))
# Table, name and new row, and a parameter with the shape that it then has.
CHANGES = {
    "block": (
        (BLOCKS, "basic", (FIRST._replace(kernel=5), *OTHERS)),
        ("stage2_block1/conv1/kernel", (5, 5, 16, 32)),
    ),
    "stem": ((STEMS, "cifar", WIDE_STEM), ("stem_conv/kernel", (5, 5, 3, 16))),
    "shortcut": (
        (SHORTCUTS, "A", SHORTCUTS["B3"]),
        ("stage2_block1/Ws/kernel", (3, 3, 16, 32)),
    ),
    "attention": (
        (ATTENTION, "none", ATTENTION["se"]),
        ("stage2_block1/se_fc2/bias", (32,)),
    ),
}
CONSUMERS = {
    "state": lambda model: create_state(model, OPTIMIZER, 0, SHAPE).params,
    "init": lambda model: variables_of(model, (1, *SHAPE))["params"],
    "spec of the zoo": lambda _: variables_of(ResNet(get_spec(NAME)), (1, *SHAPE))["params"],
    "shapes of weights": lambda model: variable_shapes(model.spec)["params"],
}


@pytest.mark.parametrize("consumer", CONSUMERS)
@pytest.mark.parametrize("change", CHANGES)
def test_tree_of_parameters_follows_a_changed_row(change, consumer, monkeypatch):
    """For the same model, and for an equal one."""
    row, (name, expected) = CHANGES[change]
    model = create_model(NAME)

    def shape_of(model):
        params = jax.eval_shape(lambda: CONSUMERS[consumer](model))
        return {"/".join(path): leaf.shape for path, leaf in flatten_dict(params).items()}.get(name)

    before = shape_of(model)
    assert before != expected
    monkeypatch.setitem(*row)
    assert shape_of(model) == shape_of(create_model(NAME)) == expected
    monkeypatch.undo()
    assert shape_of(model) == before


@pytest.mark.slow
def test_batch_statistics_follow_a_changed_row(monkeypatch):
    """Convolutions that return half have half the mean, from the same kernels."""
    model = create_model(NAME, **TINY)
    x = np.random.default_rng(0).standard_normal((4, *SHAPE))
    variables = create_state(model, OPTIMIZER, 0, SHAPE).variables

    def mean():
        images = [x.astype(np.float32)]
        return recompute_batch_stats(model, variables, images)["batch_stats"]["stem_norm"]["mean"]

    whole, conv = mean(), CONVS["plain"]
    monkeypatch.setitem(CONVS, "plain", lambda *args, **kwargs: conv(*args, **kwargs) / 2)
    np.testing.assert_allclose(mean(), whole / 2, rtol=1e-5, atol=1e-7)


WIDTHS = {"hidden": 4}


class ReadsTable(nn.Module):
    """Has a table outside of its fields."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(WIDTHS["hidden"], name="hidden")(x.reshape(len(x), -1))
        return nn.Dense(3, name="head")(x)


def test_state_follows_a_table_of_the_users_own(monkeypatch):
    def width():
        state = create_state(ReadsTable(), OPTIMIZER, 0, SHAPE)
        return state.params["head"]["kernel"].shape[0]

    assert width() == 4
    monkeypatch.setitem(WIDTHS, "hidden", 6)
    assert width() == 6


def test_equal_models_share_the_compiled_initialization():
    """Otherwise each network of an ensemble would be compiled."""
    create_state(create_model(NAME, **TINY), OPTIMIZER, 0, SHAPE)

    def fail(*args):
        raise AssertionError("the network is traced again")

    with nn.intercept_methods(fail):
        state = create_state(create_model(NAME, **TINY), OPTIMIZER, 1, SHAPE)
    assert jnp.isfinite(state.params["stem_conv"]["kernel"]).all()
