"""Precise batch statistics against NumPy in float64."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resflax import create_model
from resflax.nn.batch_norm import BatchNorm
from resflax.train import create_state, make_engine, recompute_batch_stats
from resflax.train.precise_bn import make_stats_step, recompute_state_batch_stats


def flax_norm(*, train, axis_name, name):
    return nn.BatchNorm(
        use_running_average=not train, axis_name=axis_name, name=name, use_fast_variance=False
    )


def our_norm(**fields):
    return BatchNorm(**fields)


class TwoNormNet(nn.Module):
    """Batch norm of the input and of a hidden layer."""

    norm: object = our_norm
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, *, train):
        x = x.reshape(len(x), -1)
        x = self.norm(train=train, axis_name=self.axis_name, name="norm1")(x)
        x = nn.Dense(5, name="hidden")(nn.relu(x))
        x = self.norm(train=train, axis_name=self.axis_name, name="norm2")(x)
        return nn.Dense(3, name="head")(x)


def make_images(count=4, n=16, offset=0.0):
    """Returns batches whose means differ, so the population has a larger variance than each."""
    rng = np.random.default_rng(1)
    return [
        (offset + k + (1 + k) * rng.standard_normal((n, 3, 1, 1))).astype(np.float32)
        for k in range(count)
    ]


def variables_of(net, seed=0):
    init = jax.jit(partial(net.init, train=False))
    variables = init(jax.random.key(seed), jnp.zeros((1, 3, 1, 1)))
    return jax.tree.map(lambda leaf: leaf + 0.5, variables)  # so that no norm is the identity


def expected_stats(variables, batches):
    """Computes the statistics of both layers over all batches, each normalized by its own."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    x = [np.asarray(batch, np.float64).reshape(len(batch), -1) for batch in batches]

    def normalize(x, norm):
        return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * norm["scale"] + norm["bias"]

    hidden = [
        np.maximum(normalize(batch, params["norm1"]), 0) @ params["hidden"]["kernel"] for batch in x
    ]
    hidden = [h + params["hidden"]["bias"] for h in hidden]
    return {
        name: {"mean": np.concatenate(parts).mean(0), "var": np.concatenate(parts).var(0)}
        for name, parts in (("norm1", x), ("norm2", hidden))
    }


def assert_close(stats, expected, rtol=1e-5):
    for name, values in expected.items():
        for key, value in values.items():
            assert stats[name][key].dtype == np.float32
            np.testing.assert_allclose(stats[name][key], value, rtol=rtol, err_msg=name + key)


@pytest.mark.slow
@pytest.mark.parametrize("norm", [our_norm, flax_norm])
def test_statistics_equal_those_of_all_examples(norm):
    net = TwoNormNet(norm)
    variables = variables_of(net)
    result = recompute_batch_stats(net, variables, make_images())
    assert_close(result["batch_stats"], expected_stats(variables, make_images()))
    jax.tree.map(np.testing.assert_array_equal, result["params"], variables["params"])


def test_variance_is_accurate_for_a_large_mean():
    """E[x^2] - E[x]^2 would lose a variance of 8 in float32, whose spacing at 1e8 is 8."""
    net = TwoNormNet()
    variables = variables_of(net)
    result = recompute_batch_stats(net, variables, make_images(offset=1e4))["batch_stats"]
    # float32 numbers near 1e4 have a spacing of 1e-3.
    assert_close(
        result, {"norm1": expected_stats(variables, make_images(offset=1e4))["norm1"]}, rtol=1e-3
    )


def test_old_statistics_do_not_affect_the_result():
    net = TwoNormNet()
    variables = variables_of(net)
    other = {**variables, "batch_stats": jax.tree.map(lambda x: x + 7, variables["batch_stats"])}
    jax.tree.map(
        np.testing.assert_array_equal,
        recompute_batch_stats(net, variables, make_images()),
        recompute_batch_stats(net, other, make_images()),
    )


@pytest.mark.slow
def test_scanned_blocks_are_recomputed_without_drop_path():
    """With momentum 0.9, one step from zero gives a tenth of the statistics of its batch."""
    small = {"depths": (2,), "widths": (8,), "stem_width": 8, "zero_init": False}
    x = np.random.default_rng(0).standard_normal((8, 8, 8, 1)).astype(np.float32)
    model = create_model("cifar_resnet8", **small, scan=True, remat=True)
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), x)
    start = {**variables, "batch_stats": jax.tree.map(jnp.zeros_like, variables["batch_stats"])}
    train = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    _, tenth = train(start, x)
    dropping = create_model("cifar_resnet8", **small, scan=True, remat=True, drop_path=0.9)
    result = recompute_batch_stats(dropping, variables, [x])["batch_stats"]
    assert "stage1_rest" in result
    for a, b in zip(*map(jax.tree.leaves, (result, tenth["batch_stats"])), strict=True):
        np.testing.assert_allclose(a, 10 * b, rtol=2e-4, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pmap", "mesh"])
def test_state_on_eight_devices_gets_statistics_of_its_ema(name):
    net = TwoNormNet()
    engine = make_engine(name)
    state = create_state(net, optax.sgd(0.1), 0, (3, 1, 1), variables_of(net), ema=True)
    state = dataclasses.replace(state, ema=jax.tree.map(lambda w: 2 * w, state.params))
    step = make_stats_step(net, normalize=lambda images: 3 * images, axis_name=engine.axis_name)
    batches = [engine.shard_batch({"image": batch}) for batch in make_images()]
    result = recompute_state_batch_stats(
        engine, net, engine.compile_eval(step), engine.put_state(state), batches
    )
    tripled = [3 * batch for batch in make_images()]
    assert_close(engine.to_host(result).batch_stats, expected_stats({"params": state.ema}, tripled))


def test_variables_without_batch_norm_are_returned():
    variables = {"params": {"w": jnp.ones(2)}}
    assert recompute_batch_stats(TwoNormNet(), variables, []) is variables


def test_recomputing_without_batches_raises_value_error():
    with pytest.raises(ValueError, match="no batches"):
        recompute_batch_stats(TwoNormNet(), variables_of(TwoNormNet()), [])
