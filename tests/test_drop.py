"""Stochastic depth and dropout: their distributions, and one key per example."""

import itertools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resflax import UserError
from resflax.nn import Residual, ResNet, Spec, identity, stack_params
from resflax.nn.drop import block_rates, drop_path, dropout

# FRN normalizes each example on its own, so a batch can be split.
TINY = {
    "depths": (1, 3),
    "widths": (4, 8),
    "stem_width": 4,
    "stem": "cifar",
    "block": "basic",
    "norm": "frn_tlu",
    "zero_init": False,
    "num_classes": 3,
}
IMAGES = jnp.asarray(np.random.default_rng(0).standard_normal((8, 6, 6, 3)), jnp.float32)


def make_keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def variables_of(net):
    """Returns random variables, without compiling `init`."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), IMAGES[:1], train=False))

    def leaf(x):
        fan_in = np.prod(x.shape[:-1])
        return jnp.asarray(rng.standard_normal(x.shape) * np.sqrt(2 / fan_in), x.dtype)

    return jax.tree.map(leaf, shapes)


def train_logits(net, variables, images, keys=None):
    """Returns logits in training mode."""
    return net.apply(variables, images, train=True, dropout_keys=keys, mutable=["batch_stats"])[0]


@pytest.fixture(scope="module")
def net():
    return ResNet(Spec(**TINY, drop_path=0.6, dropout=0.3))


@pytest.fixture(scope="module")
def variables(net):
    return variables_of(net)


@pytest.fixture(scope="module")
def logits(net, variables):
    return np.asarray(
        jax.jit(lambda x, k: train_logits(net, variables, x, k))(IMAGES, make_keys(8))
    )


@pytest.mark.slow
def test_drop_path_has_linear_rates_and_keeps_the_mean():
    n, blocks = 20_000, 5
    scales = np.asarray(jax.jit(lambda k: drop_path(k, block_rates(0.8, blocks)))(make_keys(n)))
    assert scales.shape == (blocks, n)
    assert scales.dtype == np.float32
    for scale, p in zip(scales, 0.8 * np.arange(blocks) / (blocks - 1), strict=True):
        np.testing.assert_allclose(np.unique(scale), [0, 1 / (1 - p)] if p else [1], rtol=1e-6)
        assert abs((scale == 0).sum() - n * p) <= 5 * np.sqrt(n * p * (1 - p))
    # Draws of different blocks and of different examples are uncorrelated.
    dropped = scales[2:] == 0
    dropped = (dropped - dropped.mean(1, keepdims=True)) / dropped.std(1, keepdims=True)
    assert abs((dropped[0] * dropped[1]).mean()) < 5 / np.sqrt(n)
    assert abs((dropped[0, 1:] * dropped[0, :-1]).mean()) < 5 / np.sqrt(n)


@pytest.mark.slow
def test_drop_path_never_drops_a_single_block():
    assert drop_path(make_keys(4), block_rates(0.9, 1)).tolist() == [[1.0] * 4]


@pytest.mark.slow
def test_expectation_over_drops_is_evaluation_mode():
    """Exact for a linear network: sums the 2^3 outcomes, weighted by their probabilities."""
    rates = 0.6 * np.arange(3) / 2 + 0.1

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x, scales):
            for i in range(3):
                dense = lambda h: nn.Dense(4, name="F")(h)  # noqa: E731
                x = Residual(dense, post=identity, name=f"block{i}")(
                    x, None if scales is None else scales[i]
                )
            return x

    x = IMAGES[:5, 0, 0, :3] @ jnp.ones((3, 4)) + jnp.arange(4.0)
    net = Stack()
    variables = net.init(jax.random.key(0), x, None)
    outcomes = np.array(list(itertools.product([0, 1], repeat=3)))
    probabilities = np.where(outcomes, 1 - rates, rates).prod(1)
    scales = jnp.asarray(outcomes / (1 - rates), jnp.float32)[..., None].repeat(5, -1)
    outputs = jax.vmap(lambda s: net.apply(variables, x, s))(scales)
    expected = net.apply(variables, x, None)
    np.testing.assert_allclose(np.tensordot(probabilities, outputs, 1), expected, rtol=1e-5)
    np.testing.assert_allclose(outputs[0], x, rtol=1e-6)  # all branches dropped


@pytest.mark.slow
def test_rate_near_one_leaves_the_shortcut(variables):
    """Dropping the second of two blocks is the same as a zero norm scale at its end."""
    spec = Spec(**{**TINY, "depths": (1, 1)})
    found = train_logits(ResNet(spec.override(drop_path=1 - 1e-7)), variables, IMAGES, make_keys(8))
    zeroed = jax.tree_util.tree_map_with_path(
        lambda path, x: x * 0 if "stage2_block1']['norm2" in jax.tree_util.keystr(path) else x,
        variables,
    )
    expected = train_logits(ResNet(spec), zeroed, IMAGES)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(expected - train_logits(ResNet(spec), variables, IMAGES)).max() > 0.01


@pytest.mark.slow
def test_dropped_parts_depend_on_the_examples_key_only(net, variables, logits):
    """Single examples under `vmap` and `pmap` are dropped as in one batch."""
    parts = IMAGES.reshape(4, 2, 1, *IMAGES.shape[1:]), make_keys(8).reshape(4, 2, 1)
    found = jax.pmap(jax.vmap(lambda x, k: train_logits(net, variables, x, k)))(*parts)
    np.testing.assert_allclose(found.reshape(8, -1), logits, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_scan_and_remat_drop_the_same(net, variables, logits):
    scanned, stacked = net.clone(scan=True, remat=True), stack_params(variables)
    found = jax.jit(lambda x, k: train_logits(scanned, stacked, x, k))(IMAGES, make_keys(8))
    np.testing.assert_allclose(found, logits, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_remat_backward_pass_drops_the_same_as_forward(net, variables):
    """The directional derivative matches a finite difference."""
    scanned, stacked = net.clone(scan=True, remat=True), stack_params(variables)

    def loss(t):
        scaled = jax.tree.map(lambda x: x * (1 + t), stacked)
        return jnp.sum(train_logits(scanned, scaled, IMAGES, make_keys(8)) ** 2)

    run = jax.jit(lambda t: (loss(t), jax.grad(loss)(t)))
    _, slope = run(0.0)
    np.testing.assert_allclose(slope, (run(5e-3)[0] - run(-5e-3)[0]) / 1e-2, rtol=2e-2)


def test_no_random_numbers_in_evaluation_or_at_rate_zero(net, variables):
    plain = ResNet(Spec(**TINY))

    def traced(net, train, keys):
        return str(
            jax.make_jaxpr(
                lambda x: net.apply(
                    variables, x, train=train, dropout_keys=keys, mutable=["batch_stats"]
                )
            )(IMAGES)
        )

    without = re.sub("0x[0-9a-f]+", "", traced(plain, True, None))
    assert re.sub("0x[0-9a-f]+", "", traced(plain, True, make_keys(8))) == without
    assert "random" not in traced(net, False, None)
    assert "random" in traced(net, True, make_keys(8))


@pytest.mark.slow
def test_dropout_keeps_the_mean():
    x = jnp.ones((4, 20_000)) * jnp.asarray([[1.0], [2.0], [3.0], [-4.0]])
    y = np.asarray(dropout(make_keys(4), x, 0.3))
    keep = y != 0
    np.testing.assert_allclose(y, np.where(keep, np.asarray(x) / 0.7, 0), rtol=1e-6)
    assert (np.abs(keep.sum(1) - 14_000) < 5 * np.sqrt(20_000 * 0.3 * 0.7)).all()
    assert 0.5 < (keep[0] == keep[1]).mean() < 0.66  # 0.58 for independent rows


@pytest.mark.slow
def test_dropout_is_applied_before_the_head(variables):
    """Logits with dropout are the head applied to dropped features."""
    keys = make_keys(8)
    features = ResNet(Spec(**{**TINY, "num_classes": 0}))
    x = dropout(keys, train_logits(features, variables, IMAGES), 0.3)
    head = variables["params"]["head"]
    found = train_logits(ResNet(Spec(**TINY, dropout=0.3)), variables, IMAGES, keys)
    np.testing.assert_allclose(found, x @ head["kernel"] + head["bias"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("keys", [None, make_keys(7)], ids=["none", "too few"])
def test_missing_dropout_keys_raise(net, variables, keys):
    with pytest.raises(ValueError, match=r"one key per example: expected shape \(8,\), got"):
        train_logits(net, variables, IMAGES, keys)


@pytest.mark.parametrize("field", ["drop_path", "dropout"])
@pytest.mark.parametrize("value", [1.0, -0.1, float("nan"), True, "0.1"])
def test_invalid_rates_raise(field, value):
    with pytest.raises(UserError, match=f"{field} is {value!r}: expected a probability below 1"):
        Spec(**TINY, **{field: value})


def test_drop_path_without_shortcuts_raises():
    with pytest.raises(
        UserError, match="drop_path is 0.1: a network without shortcuts needs every branch"
    ):
        Spec(**TINY, shortcut="none", drop_path=0.1)


def test_traced_rates_of_members_equal_static_ones(variables):
    """A rate of 0 drops nothing, although the spec has drop path."""
    net = ResNet(Spec(**TINY, drop_path=0.6))
    keys, rates = make_keys(8), (0.0, 0.25, 0.6)

    @jax.jit
    @jax.vmap
    def logits(rate):
        return net.apply(
            variables,
            IMAGES,
            train=True,
            dropout_keys=keys,
            drop_path_rates=rate,
            mutable=["batch_stats"],
        )[0]

    for member, rate in zip(
        logits(jnp.array([block_rates(r, 4) for r in rates])), rates, strict=True
    ):
        alone = train_logits(ResNet(Spec(**TINY, drop_path=rate)), variables, IMAGES, keys)
        np.testing.assert_allclose(member, alone, rtol=1e-5, atol=1e-6)
