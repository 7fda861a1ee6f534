"""`BatchNorm` against Flax's and against its closed form in float64."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.conv_reference import assert_close, normal

from resflax import UserError, create_model
from resflax.inference import make_predictor
from resflax.nn.batch_norm import BatchNorm
from resflax.weights import from_torch

SHAPE = (6, 5, 4, 7)


def flax_batch_norm(*, train, axis_name=None, dtype=jnp.float32):
    return nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype, axis_name=axis_name
    )


def variables(channels=7, seed=0):
    rng = np.random.default_rng(seed)
    row = lambda *range: jnp.asarray(rng.uniform(*range, channels), jnp.float32)  # noqa: E731
    return {
        "params": {"scale": row(0.5, 1.5), "bias": row(-1, 1)},
        "batch_stats": {"mean": row(-1, 1), "var": row(0.5, 2)},
    }


def images(shape=SHAPE, mean=0.7, std=1.5, seed=0):
    return mean + std * normal(shape, seed=seed)


def run(module, variables, x, weight):
    """Returns output, new statistics, and gradients of a weighted sum."""

    def value(params, x):
        y, state = module.apply({**variables, "params": params}, x, mutable=["batch_stats"])
        return jnp.sum(weight * jnp.sin(y.astype(weight.dtype))), (y, state["batch_stats"])

    gradients, (y, stats) = jax.grad(value, (0, 1), has_aux=True)(variables["params"], x)
    return y, stats, *gradients


def closed_form(variables, x, train=True, epsilon=1e-5, momentum=0.9):
    """Returns Ioffe and Szegedy 2015, algorithm 1, and new running statistics, in float64."""
    x = np.asarray(x, np.float64)
    get = lambda a, b: np.asarray(variables[a][b], np.float64)  # noqa: E731
    old = get("batch_stats", "mean"), get("batch_stats", "var")
    mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else old
    y = (x - mean) / np.sqrt(var + epsilon) * get("params", "scale") + get("params", "bias")
    updated = [momentum * a + (1 - momentum) * b for a, b in zip(old, (mean, var), strict=True)]
    return y, dict(zip(("mean", "var"), updated, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [SHAPE, (9, 7), (1, 3, 3, 7)])
@pytest.mark.parametrize("train", [True, False])
def test_outputs_statistics_and_gradients_match_flax(train, shape):
    x, weight = images(shape), normal(shape, seed=1)
    state = variables()
    found = jax.jit(partial(run, BatchNorm(train=train)))(state, x, weight)
    expected = jax.jit(partial(run, flax_batch_norm(train=train)))(state, x, weight)
    jax.tree.map(partial(assert_close, tolerance=2e-5), found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("train", [True, False])
def test_outputs_and_statistics_match_the_closed_form(train):
    x, state = images(), variables()
    y, new = BatchNorm(train=train).apply(state, x, mutable=["batch_stats"])
    expected, stats = closed_form(state, x, train)
    assert_close(y, expected)
    new = new["batch_stats"]
    if train:
        jax.tree.map(assert_close, new, stats)
    else:
        jax.tree.map(np.testing.assert_array_equal, new, state["batch_stats"])


@pytest.mark.slow
def test_input_gradient_matches_the_closed_form():
    x, g, state = images(), normal(SHAPE, seed=1), variables()

    def value(x):
        y, _ = BatchNorm(train=True).apply(state, x, mutable=["batch_stats"])
        return jnp.vdot(y, g)

    x64, g64 = np.asarray(x, np.float64), np.asarray(g, np.float64)
    axes = (0, 1, 2)
    inverse = 1 / np.sqrt(x64.var(axes) + 1e-5)
    normed = (x64 - x64.mean(axes)) * inverse
    inner = g64 - g64.mean(axes) - normed * (g64 * normed).mean(axes)
    expected = np.asarray(state["params"]["scale"], np.float64) * inverse * inner
    assert_close(jax.grad(value)(x), expected)


@pytest.mark.slow
def test_initial_variables_match_flax():
    x = images()
    found = BatchNorm(train=True).init(jax.random.key(0), x)
    expected = flax_batch_norm(train=True).init(jax.random.key(0), x)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)  # init does not update statistics
    zero = BatchNorm(train=True, scale_init=nn.initializers.zeros).init(jax.random.key(0), x)
    np.testing.assert_array_equal(zero["params"]["scale"], np.zeros(7))


def test_momentum_and_epsilon_are_used():
    x, state = images(), variables()
    module = BatchNorm(train=True, momentum=0.5, epsilon=0.3)
    y, new = module.apply(state, x, mutable=["batch_stats"])
    expected, stats = closed_form(state, x, epsilon=0.3, momentum=0.5)
    assert_close(y, expected)
    jax.tree.map(assert_close, new["batch_stats"], stats)


@pytest.mark.slow
@pytest.mark.parametrize(("mean", "std"), [(1e3, 1.0), (-3e3, 1.0), (1e4, 10.0)])
def test_variance_is_accurate_for_a_large_mean(mean, std):
    x = images((64, 8, 8, 3), mean, std)
    near = {
        "mean": jnp.full(3, mean * 1.0003),
        "var": jnp.ones(3),
    }  # off by a third of 1e3's standard deviation
    state = {**variables(3), "batch_stats": near}
    y, new = BatchNorm(train=True, momentum=0.0).apply(state, x, mutable=["batch_stats"])
    expected, stats = closed_form(state, x, momentum=0.0)
    np.testing.assert_allclose(new["batch_stats"]["var"], stats["var"], rtol=1e-3)
    np.testing.assert_allclose(new["batch_stats"]["mean"], stats["mean"], rtol=1e-6)
    # Rounding of the input at 1e3 to 1e4 is 1e-4 standard deviations; allow a multiple of it.
    assert np.abs(y - expected).max() < 2e-3


@pytest.mark.slow
def test_constant_channel_has_zero_variance_and_finite_gradients():
    x = jnp.full(SHAPE, 3.3)
    y, stats, params, dx = run(BatchNorm(train=True), variables(), x, normal(SHAPE))
    expected, _ = closed_form(variables(), x)
    # The rounding error of the difference is multiplied by 1 / sqrt(epsilon), 316.
    assert np.abs(y - expected).max() < 1e-2
    # The variance is not negative, whatever the rounding error.
    assert (stats["var"] >= 0.9 * variables()["batch_stats"]["var"]).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((params, dx)))


def test_running_statistics_converge_to_those_of_the_data():
    x, module = images((32, 4, 4, 7), 5.0, 2.0), BatchNorm(train=True)
    state = module.init(jax.random.key(0), x)
    step = jax.jit(lambda state: {**state, **module.apply(state, x, mutable=["batch_stats"])[1]})
    for _ in range(150):
        state = step(state)
    x64 = np.asarray(x, np.float64)
    np.testing.assert_allclose(state["batch_stats"]["mean"], x64.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(state["batch_stats"]["var"], x64.var((0, 1, 2)), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mapped", ["vmap", "pmap"])
def test_axis_name_gives_statistics_of_the_global_batch(mapped):
    x, weight, state = images((16, 3, 3, 7)), normal((16, 3, 3, 7), seed=1), variables()
    y, stats, params, dx = jax.jit(partial(run, BatchNorm(train=True)))(state, x, weight)

    def run_shard(state, x, weight):
        return run(BatchNorm(train=True, axis_name="shards"), state, x, weight)

    split = lambda x: x.reshape(8, 2, *x.shape[1:])  # noqa: E731
    transform = {"vmap": jax.vmap, "pmap": jax.pmap}[mapped]
    mapping = transform(run_shard, in_axes=(None, 0, 0), axis_name="shards")
    ys, shard_stats, shard_params, dxs = mapping(state, split(x), split(weight))
    assert_close(ys.reshape(x.shape), y)
    for i in range(8):
        jax.tree.map(lambda a, b, i=i: assert_close(a[i], b), shard_stats, stats)
    jax.tree.map(lambda a, b: assert_close(a.sum(0), b), shard_params, params)
    assert_close(dxs.reshape(x.shape), dx)


@pytest.mark.slow
def test_shards_with_different_means_share_the_global_variance():
    x = images((8, 1, 3, 3, 7)) + 10 * jnp.arange(8.0).reshape(8, 1, 1, 1, 1)
    module = BatchNorm(train=True, axis_name="shards", momentum=0.0)
    apply = partial(module.apply, mutable=["batch_stats"])
    _, new = jax.vmap(apply, in_axes=(None, 0), axis_name="shards")(variables(), x)
    _, expected = closed_form(variables(), x.reshape(8, 3, 3, 7), momentum=0.0)
    assert_close(new["batch_stats"]["var"][3], expected["var"])


@pytest.mark.parametrize("train", [True, False])
def test_bfloat16_output_is_float32_rounded_once(train):
    x, state = images().astype(jnp.bfloat16), variables()
    y, new = BatchNorm(train=train, dtype=jnp.bfloat16).apply(state, x, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    expected, stats = closed_form(state, x, train)
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=2**-8, atol=1e-5)
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype(jnp.float32)}
    if train:
        jax.tree.map(assert_close, new["batch_stats"], stats)
    dx = jax.grad(lambda x: BatchNorm(train=False).apply(state, x).sum())(x)
    assert dx.dtype == jnp.bfloat16


@pytest.mark.slow
def test_float64_output_has_float32_running_statistics():
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).standard_normal(SHAPE))
        assert x.dtype == jnp.float64
        module = BatchNorm(train=True, dtype=jnp.float64)
        y, new = module.apply(variables(), x, mutable=["batch_stats"])
        assert y.dtype == jnp.float64
        expected, _ = closed_form(variables(), x)
        assert_close(y, expected, 1e-12)
        assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype(jnp.float32)}


def test_second_derivatives_match_flax():
    x, t, weight, state = images(), normal(SHAPE, seed=1), normal(SHAPE, seed=2), variables()

    def product(module):
        gradient = jax.grad(
            lambda x: jnp.sum(weight * jnp.sin(module.apply(state, x, mutable=["batch_stats"])[0]))
        )
        return jax.jvp(gradient, (x,), (t,))[1]

    found = jax.jit(lambda: product(BatchNorm(train=True)))()
    expected = jax.jit(lambda: product(flax_batch_norm(train=True)))()
    assert_close(found, expected, 2e-5)


def test_network_has_the_momentum_and_epsilon_of_its_spec():
    """timm's network with other constants: running statistics of a batch, then its logits."""
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    norm = partial(torch.nn.BatchNorm2d, eps=0.1, momentum=0.3)
    net = timm.create_model("test_resnet", num_classes=5, norm_layer=norm)
    spec = {"norm_momentum": 0.7, "norm_epsilon": 0.1, "num_classes": 5}
    model = create_model("test_resnet", **spec)
    x = images((4, 32, 32, 3))
    start = from_torch("test_resnet", dict(net.state_dict()), num_classes=5)
    _, updated = model.apply(start, x, train=True, mutable=["batch_stats"])
    with torch.no_grad():
        theirs = torch.from_numpy(np.array(x.transpose(0, 3, 1, 2)))
        net.train()(theirs)
        logits = net.eval()(theirs).numpy()
    expected = from_torch("test_resnet", dict(net.state_dict()), num_classes=5)["batch_stats"]
    # torch divides the batch's variance by one less than the number of values, at least 4.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0.1, atol=1e-4),
        updated["batch_stats"],
        expected,
    )
    trained = {**start, "batch_stats": expected}
    for predict in (
        partial(model.apply, trained, train=False),
        make_predictor(model.spec, trained),
    ):
        np.testing.assert_allclose(predict(x), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "fields", [{"norm_momentum": 1.0}, {"norm_momentum": True}, {"norm_epsilon": -1e-5}]
)
def test_invalid_momentum_or_epsilon_raises_user_error(fields):
    with pytest.raises(UserError, match=f"{next(iter(fields))} is .*: expected 0 or more"):
        create_model("cifar_resnet8", **fields)
