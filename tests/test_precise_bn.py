"""Batch statistics of a population, against NumPy's in float64."""

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
from resflax.train import create_state, make_engine, recalibrate
from resflax.train.settle import make_statistics_step, settled


def flax_norm(*, train, axis_name, name):
    return nn.BatchNorm(
        use_running_average=not train, axis_name=axis_name, name=name, use_fast_variance=False
    )


def our_norm(**fields):
    return BatchNorm(**fields)


class Net(nn.Module):
    """Batch norm of what comes in and of a hidden layer."""

    norm: object = our_norm
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, *, train):
        x = x.reshape(len(x), -1)
        x = self.norm(train=train, axis_name=self.axis_name, name="norm1")(x)
        x = nn.Dense(5, name="hidden")(nn.relu(x))
        x = self.norm(train=train, axis_name=self.axis_name, name="norm2")(x)
        return nn.Dense(3, name="head")(x)


def images(count=4, n=16, offset=0.0):
    """Batches whose means differ, so that the population varies more than they do."""
    rng = np.random.default_rng(1)
    return [
        (offset + k + (1 + k) * rng.standard_normal((n, 3, 1, 1))).astype(np.float32)
        for k in range(count)
    ]


def variables_of(net, seed=0):
    init = jax.jit(partial(net.init, train=False))
    variables = init(jax.random.key(seed), jnp.zeros((1, 3, 1, 1)))
    return jax.tree.map(lambda leaf: leaf + 0.5, variables)  # norms are no identities


def by_hand(variables, batches):
    """The statistics of both layers over everything, each batch normalised by its own."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    x = [np.asarray(batch, np.float64).reshape(len(batch), -1) for batch in batches]

    def normed(x, norm):
        return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * norm["scale"] + norm["bias"]

    hidden = [
        np.maximum(normed(batch, params["norm1"]), 0) @ params["hidden"]["kernel"] for batch in x
    ]
    hidden = [h + params["hidden"]["bias"] for h in hidden]
    return {
        name: {"mean": np.concatenate(found).mean(0), "var": np.concatenate(found).var(0)}
        for name, found in (("norm1", x), ("norm2", hidden))
    }


def assert_near(found, expected, rtol=1e-5):
    for name, statistics in expected.items():
        for key, value in statistics.items():
            assert found[name][key].dtype == np.float32
            np.testing.assert_allclose(found[name][key], value, rtol=rtol, err_msg=name + key)


@pytest.mark.parametrize("norm", [our_norm, flax_norm])
def test_statistics_are_those_of_all_batches_together(norm):
    net = Net(norm)
    variables = variables_of(net)
    found = recalibrate(net, variables, images())
    assert_near(found["batch_stats"], by_hand(variables, images()))
    jax.tree.map(np.testing.assert_array_equal, found["params"], variables["params"])


def test_a_large_mean_costs_no_digits():
    """Of a variance of 8, E[x^2] - E[x]^2 would leave none in float32, where 1e8 is 8 apart."""
    net = Net()
    variables = variables_of(net)
    found = recalibrate(net, variables, images(offset=1e4))["batch_stats"]
    # The means themselves are 1e-3 apart.
    assert_near(found, {"norm1": by_hand(variables, images(offset=1e4))["norm1"]}, rtol=1e-3)


def test_the_statistics_before_have_no_part_in_it():
    net = Net()
    variables = variables_of(net)
    other = {**variables, "batch_stats": jax.tree.map(lambda x: x + 7, variables["batch_stats"])}
    jax.tree.map(
        np.testing.assert_array_equal,
        recalibrate(net, variables, images()),
        recalibrate(net, other, images()),
    )


def test_it_reaches_into_scanned_and_recomputed_blocks_and_drops_nothing():
    """One batch: what one step of training leaves of zeros is a tenth of its statistics."""
    small = {"depths": (2,), "widths": (8,), "stem_width": 8, "zero_init": False}
    x = np.random.default_rng(0).standard_normal((8, 8, 8, 1)).astype(np.float32)
    model = create_model("cifar_resnet8", **small, scan=True, remat=True)
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), x)
    start = {**variables, "batch_stats": jax.tree.map(jnp.zeros_like, variables["batch_stats"])}
    train = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    _, tenth = train(start, x)
    dropping = create_model("cifar_resnet8", **small, scan=True, remat=True, drop_path=0.9)
    found = recalibrate(dropping, variables, [x])["batch_stats"]
    assert "stage1_rest" in found
    for a, b in zip(*map(jax.tree.leaves, (found, tenth["batch_stats"])), strict=True):
        np.testing.assert_allclose(a, 10 * b, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["pmap", "mesh"])
def test_a_state_on_eight_devices_gets_the_averages_statistics(name):
    net = Net()
    engine = make_engine(name)
    state = create_state(net, optax.sgd(0.1), 0, (3, 1, 1), variables_of(net), ema=True)
    state = dataclasses.replace(state, ema=jax.tree.map(lambda w: 2 * w, state.params))
    step = make_statistics_step(
        net, normalize=lambda images: 3 * images, axis_name=engine.axis_name
    )
    batches = [{"image": batch} for batch in images()]
    found = settled(engine, engine.compile_eval(step), engine.replicate(state), batches)
    tripled = [3 * batch for batch in images()]
    assert_near(engine.to_host(found).batch_stats, by_hand({"params": state.ema}, tripled))


def test_what_has_no_batch_norm_stays_as_it_is():
    variables = {"params": {"w": jnp.ones(2)}}
    assert recalibrate(Net(), variables, []) is variables


def test_no_batches_are_refused():
    with pytest.raises(ValueError, match="no batches"):
        recalibrate(Net(), variables_of(Net()), [])
