"""Rows of tables that change in a session: nothing returns the network of the old row."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from helpers.networks import randomized, run, variables_of

from resflax import UserError, create_model
from resflax.inference import build_graph, make_predictor
from resflax.nn import BLOCKS, GATES, ORDERS, ConvRow, ResNet, Spec, split_members
from resflax.nn.antialias import ANTIALIAS, filtered_maximum
from resflax.nn.attention import ATTENTION
from resflax.nn.convs import CONVS, ConvKind
from resflax.nn.field_table import FIELDS
from resflax.nn.gates import constant
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

    whole, conv = mean(), CONVS["plain"].function
    monkeypatch.setitem(CONVS, "plain", lambda *args, **kwargs: conv(*args, **kwargs) / 2)
    np.testing.assert_allclose(mean(), whole / 2, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_equal_models_share_the_compiled_statistics():
    """Precise BN of several networks, or of one again, compiles once."""
    x = np.zeros((2, *SHAPE), np.float32)
    variables = create_state(create_model(NAME, **TINY), OPTIMIZER, 0, SHAPE).variables
    recompute_batch_stats(create_model(NAME, **TINY), variables, [x])

    def fail(*args):
        raise AssertionError("the network is traced again")

    with nn.intercept_methods(fail):
        recompute_batch_stats(create_model(NAME, **TINY), variables, [x + 1])


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


def project(ops, x, features, stride):
    return ops.conv(x, features, 1, stride, name="W")


def no_norm(ops, x, *, name, zero):
    return 2 * x


def wide(ops, x, features, stride):
    return ops.conv(ops.act(ops.conv(x, 8, 1, name="a")), features, 3, stride, name="b")


# By field: rows in place of the one that the network names, shipped ones and functions.
REPLACEMENTS = {
    "block": [BLOCKS["bottleneck"], (ConvRow(5, strided=True, expansion=1),), wide],
    "stem": [
        WIDE_STEM,
        STEMS["imagenet"],
        STEM._replace(pool=lambda ops, x, antialias: x[:, ::2, ::2]),
    ],
    "shortcut": [SHORTCUTS["C"], SHORTCUTS["none"], project],
    "gate": [GATES["exclusive"], GATES["rezero"], constant(0.5, 2.0), lambda h, y, s: y - s],
    "order": [ORDERS["preact"], ORDERS["norm_after_add"]],
    "attention": [ATTENTION["se"], lambda ops, x, channels: 2 * x],
    "antialias": [
        ANTIALIAS["blur"],
        filtered_maximum(lambda ops, x, stride: x[:, ::stride, ::stride]),
    ],
    "norm": [FIELDS["norm"].table["frn_tlu"], FIELDS["norm"].table["none"], no_norm],
    "conv": [
        CONVS["standardized"],
        ConvKind(
            lambda x, w, *args, **kwargs: 2 * jax.lax.conv_general_dilated(x, w, *args, **kwargs)
        ),
        ConvKind(jax.lax.conv_general_dilated, 1e-2, has_gain=True),
    ],
    "activation": [FIELDS["activation"].table["silu"], jnp.sin],
    "pooling": [
        FIELDS["pooling"].table["max"],
        lambda ops, x: jnp.concatenate([x.max((1, 2)), x.min((1, 2))], -1),
    ],
    "head": [lambda ops, x, features: jnp.tanh(ops.dense(x, features, name="head"))],
}
NAMES = {
    "block": "basic",
    "stem": "imagenet",
    "shortcut": "B",
    "order": "original",
    "norm": "batch",
    "conv": "plain",
    "activation": "relu",
    "pooling": "avg",
    "head": "linear",
}


def test_replacements_are_of_every_field():
    assert {*REPLACEMENTS} == {*FIELDS} - {"ensemble"}


@pytest.mark.parametrize(
    ("field", "index", "is_new"),
    [(f, i, False) for f, rows in REPLACEMENTS.items() for i in range(len(rows))]
    + [(f, -1, True) for f in REPLACEMENTS],
)
def test_predictor_follows_a_changed_row(field, index, is_new, monkeypatch):
    table = ORDERS if field == "order" else FIELDS[field].table
    key = "added" if is_new else NAMES.get(field, "none")
    monkeypatch.setitem(table, key, REPLACEMENTS[field][index])
    fields = {"block": "basic", "stem": "imagenet", field: key}
    model = ResNet(Spec(depths=(1,), widths=(8,), stem_width=4, num_classes=5, **fields))
    images = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    variables = randomized(variables_of(model, images.shape))
    predict = make_predictor(model.spec, variables, backend="jax")

    def both(variables, arrays, images):
        return model.apply(variables, images, train=False), predict.apply(arrays, images)

    expected, actual = run(both, variables, predict.arrays, images)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_features_of_an_own_pooling_are_not_guessed():
    model = create_model("cifar_resnet8", **TINY, pooling=REPLACEMENTS["pooling"][1])
    variables = randomized(variables_of(model, (1, *SHAPE)))
    graph = build_graph(model.spec, variables, outputs="features")
    assert graph.features == 0
    model = create_model("cifar_resnet8", **TINY, pooling="max")
    variables = randomized(variables_of(model, (1, *SHAPE)))
    graph = build_graph(model.spec, variables, outputs="features")
    assert graph.features == 8


def test_members_of_a_replaced_ensemble_are_refused(monkeypatch):
    ensembles = FIELDS["ensemble"].table
    monkeypatch.setitem(ensembles, "mimo", ensembles["mimo"]._replace(shuffles=False))
    model = create_model("cifar_resnet8", **TINY, ensemble="mimo", members=2)
    with pytest.raises(
        UserError, match="ensemble is 'mimo', a row that was .*: expected one of no"
    ):
        split_members(model.spec, {"params": {}})
