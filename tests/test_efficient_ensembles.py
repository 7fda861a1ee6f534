"""Efficient ensembles in one network against the single networks that their members are."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resflax import create_model
from resflax.nn import Spec, stack_params
from resflax.nn.members import split_members
from resflax.train.metrics import cross_entropy

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
        values = rng.normal(size=leaf.shape) * (0.2 if path[-1].key == "kernel" else 1.0)
        return jnp.asarray(np.abs(values) + 0.5 if path[-1].key == "var" else values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


@partial(jax.jit, static_argnums=0)
def train_logits(model, variables, images=IMAGES, keys=KEYS):
    kwargs = {"dropout_keys": keys} if model.needs_rng else {}
    return model.apply(variables, images, train=True, mutable=["batch_stats"], **kwargs)


@partial(jax.jit, static_argnums=(0, 3))
def evaluate(model, variables, images=IMAGES, members=False):
    return model.apply(variables, images, train=False, members=members)


def member_logits(model, variables):
    return evaluate(model, variables, IMAGES, True)


def assert_close(found, expected, tolerance=1e-4):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


@every_ensemble
def test_logits_are_logarithms_of_mean_probabilities(kind):
    model = make(**ENSEMBLES[kind])
    variables, members = init(model), ENSEMBLES[kind]["members"]
    found = evaluate(model, variables)
    logits = member_logits(model, variables)
    assert found.shape == (8, 5)
    assert logits.shape == (members, 8, 5)
    exact = np.asarray(logits, np.float64)
    probabilities = np.exp(exact) / np.exp(exact).sum(-1, keepdims=True)
    np.testing.assert_allclose(np.exp(found), probabilities.mean(0), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize(
    ("kind", "overrides", "scan"),
    [
        ("batch", {"preact": True, "attention": "se"}, False),
        ("batch", {"attention": "eca", "norm": "frn_tlu"}, True),
        ("packed", {"shortcut": "A"}, True),
        ("packed", {"preact": True, "block": "bottleneck", "groups": 2}, False),
        ("packed", {"stem": "deep", "norm": "frn_tlu"}, False),
        ("mimo", {"stem": "deep", "attention": "se"}, True),
    ],
)
def test_members_equal_single_networks(kind, overrides, scan):
    model = make(**ENSEMBLES[kind], **overrides)
    variables = init(model)
    if scan:
        model, variables = model.clone(scan=True), stack_params(variables)
    logits = member_logits(model, variables)
    single = create_model(model.spec.member, scan=False)
    parts = split_members(model.spec, variables)
    shapes = jax.eval_shape(lambda: single.init(jax.random.key(0), IMAGES, train=False))
    for member, expected in zip(parts, logits, strict=True):
        assert jax.tree.map(np.shape, member) == jax.tree.map(lambda leaf: leaf.shape, shapes)
        assert_close(evaluate(single, member), expected)


def test_unit_factors_equal_the_single_network():
    single, model = make(), make(**ENSEMBLES["batch"])
    plain = init(single)

    def shared(path, leaf):
        *modules, name = (part.key for part in path)
        if name == "scale" and modules[-1][-2:] in ("_r", "_s"):
            return jnp.ones(leaf.shape)
        if modules[-1] == "head_s":
            modules[-1] = "head"
        value = plain
        for key in (*modules, name):
            value = value[key]
        return jnp.broadcast_to(value, leaf.shape)

    variables = jax.tree_util.tree_map_with_path(shared, init(model))
    expected = evaluate(single, plain)
    for logits in member_logits(model, variables):
        assert_close(logits, expected)
    expected, statistics = train_logits(single, plain)
    logits, updated = train_logits(model, variables)
    for k in range(3):
        assert_close(logits[k], expected)
    stats = statistics["batch_stats"]["stage2_block1"]["norm2"]["var"]
    assert_close(updated["batch_stats"]["stage2_block1"]["norm2"]["var"], jnp.stack([stats] * 3))


def test_packed_training_equals_separate_networks():
    """Batch statistics and gradients of each member are those of its own network."""
    model = make(**ENSEMBLES["packed"])
    single, variables = create_model(model.spec.member), init(model)
    parts = split_members(model.spec, variables)

    def loss(net, params, stats):
        logits, updated = net.apply(
            {"params": params, "batch_stats": stats}, IMAGES, train=True, mutable=["batch_stats"]
        )
        return jnp.mean(cross_entropy(logits, LABELS)), updated["batch_stats"]

    grad = jax.jit(jax.value_and_grad(loss, argnums=1, has_aux=True), static_argnums=0)
    (value, stats), grads = grad(model, variables["params"], variables["batch_stats"])
    found = split_members(model.spec, {"params": grads, "batch_stats": stats})
    losses = []
    for member, result in zip(parts, found, strict=True):
        (one, stats), grads = grad(single, member["params"], member["batch_stats"])
        losses.append(one)
        expected = {"params": jax.tree.map(lambda leaf: leaf / 2, grads), "batch_stats": stats}
        jax.tree.map(lambda a, b: assert_close(a, b, 1e-3), result, expected)
    np.testing.assert_allclose(value, np.mean(losses), rtol=1e-5)


def test_mimo_with_one_member_equals_the_single_network():
    single, model = make(), make(ensemble="mimo")
    variables = init(single)
    expected = evaluate(single, variables)
    assert_close(member_logits(model, variables)[0], expected, 1e-6)
    assert_close(train_logits(model, variables)[0][0], train_logits(single, variables)[0], 1e-6)
