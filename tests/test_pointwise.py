"""Batch norm after a 1x1 convolution, from the convolution's input, against both one by one."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.conv_reference import assert_close, normal

from resflax.nn.batch_norm import BatchNorm
from resflax.nn.layers import relu_of_sum
from resflax.nn.pointwise import affine_after, moments_after, second_moments
from resflax.zoo import create_model

EPSILON = 1e-5


def data(dtype=jnp.float64, inputs=5, outputs=8):
    """Returns correlated inputs that are not centered, a kernel, scale, bias and shift."""
    mix = normal((inputs, inputs), seed=1)
    x = jax.nn.relu(normal((6, 4, 3, inputs)) @ mix + 0.7)
    rows = (normal((outputs,), seed=seed) for seed in (3, 4, 5))
    arrays = (x, normal((1, 1, inputs, outputs), seed=2), *rows)
    return tuple(array.astype(dtype) for array in arrays)


def fused(x, kernel, scale, bias, shift):
    mean, square = moments_after(x, kernel, shift)
    var = square - jnp.square(mean - shift)
    factor = scale * jax.lax.rsqrt(var + EPSILON)
    return affine_after(x, kernel, factor, bias - mean * factor), mean, var


def one_by_one(x, kernel, scale, bias, shift):
    """Returns the convolution as a matrix product, then algorithm 1 of Ioffe and Szegedy 2015."""
    del shift
    y = x @ kernel[0, 0]
    mean, var = jnp.mean(y, (0, 1, 2)), jnp.var(y, (0, 1, 2))
    return (y - mean) / jnp.sqrt(var + EPSILON) * scale + bias, mean, var


def loss(function, *arrays):
    return sum(jnp.sum(jnp.sin(3 * leaf) * jnp.cos(leaf)) for leaf in function(*arrays))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def assert_equal_trees(actual, expected, rtol=1e-9):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=rtol), actual, expected)


def test_values_and_gradients_match_convolution_then_norm():
    def value_and_gradients(function):
        run = jax.value_and_grad(partial(loss, function), argnums=(0, 1, 2, 3))
        return jax.jit(run)(*data()), function(*data())

    assert_equal_trees(value_and_gradients(fused), value_and_gradients(one_by_one))


def test_forward_mode_matches_reverse_mode():
    arrays, directions = data(), tuple(0.3 * array + 1 for array in data())
    _, derivative = jax.jit(partial(jax.jvp, partial(loss, fused)))(arrays, directions)
    gradients = jax.jit(jax.grad(partial(loss, fused), argnums=range(5)))(*arrays)
    expected = sum(jnp.vdot(g, d) for g, d in zip(gradients, directions, strict=True))
    assert derivative == pytest.approx(float(expected), rel=1e-9)


def test_hessian_vector_products_match_convolution_then_norm():
    def product(function):
        gradient = jax.grad(partial(loss, function), argnums=(0, 1, 2))
        arrays = data()
        directions = tuple(jnp.cos(array) for array in arrays)
        return jax.jit(partial(jax.jvp, gradient))(arrays, directions)

    assert_equal_trees(product(fused), product(one_by_one), rtol=1e-8)


def test_vmap_over_members_matches_a_loop():
    members = [data()[:2], [array[::-1] for array in data()[:2]]]
    rest = data()[2:]
    run = jax.jit(jax.grad(lambda x, kernel: loss(fused, x, kernel, *rest), argnums=(0, 1)))
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(run(*m) for m in members))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(tuple, members))
    assert_equal_trees(jax.jit(jax.vmap(run))(*stacked), expected)


def test_second_moments_derivative_is_one_matrix_product():
    jaxpr = str(
        jax.make_jaxpr(jax.grad(lambda x: jnp.sum(second_moments(x, x.dtype) ** 2)))(data()[0])
    )
    assert jaxpr.count("dot_general") == 2  # one forward, one backward


def test_bfloat16_is_as_close_to_float64_as_its_rounding():
    arrays = [array.astype(jnp.bfloat16).astype(jnp.float64) for array in data()]
    expected = one_by_one(*arrays)
    half = fused(arrays[0].astype(jnp.bfloat16), *(a.astype(jnp.float32) for a in arrays[1:]))
    assert half[0].dtype == jnp.bfloat16
    assert_close(half[0], expected[0], 2e-2)
    assert_equal_trees(half[1:], expected[1:], rtol=1e-4)


def test_relu_of_sum_has_the_derivatives_of_relu():
    x = jnp.asarray([-2.0, -0.0, 0.0, 1e-300, 3.0])
    for function in (
        lambda f: f(x),
        lambda f: jax.jvp(f, (x,), (x + 1,)),
        lambda f: jax.vjp(f, x)[1](x),
    ):
        jax.tree.map(np.testing.assert_array_equal, function(relu_of_sum), function(nn.relu))


def lowered(dtype, platform, train=True, **fields):
    """Returns the text of a small bottleneck network in training mode, for a platform."""
    fields = {"depths": (1,), "widths": (8,), "num_classes": 3, "dtype": dtype} | fields
    model = create_model("resnet50", **fields)
    x = jnp.zeros((2, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))

    def run(variables):
        return model.apply(variables, x, train=train, mutable=["batch_stats"])

    return jax.jit(run).trace(variables).lower(lowering_platforms=(platform,)).as_text()


def covariances(text):
    """Returns the number of products of an array with itself over all its pixels."""
    return text.count("contracting_dims = [0, 1, 2] x [0, 1, 2]")


@pytest.mark.parametrize(
    ("dtype", "platform", "count"),
    [(jnp.bfloat16, "cuda", 1), (jnp.bfloat16, "tpu", 1), (jnp.bfloat16, "cpu", 0),
     (jnp.float32, "cuda", 0), (jnp.float16, "tpu", 0)],
)  # fmt: skip
def test_networks_fuse_expansions_in_bfloat16_on_accelerators(dtype, platform, count):
    # The shortcut of stage 1 expands from 64 to 32 channels here, so only the branch is fused.
    assert covariances(lowered(dtype, platform)) == count


@pytest.mark.parametrize("fields", [{"norm": "group"}, {"conv": "standardized"}, {"train": False}])
def test_networks_without_plain_batch_norm_are_not_fused(fields):
    assert covariances(lowered(jnp.bfloat16, "cuda", **{"widths": (32,)} | fields)) == 0


def on_accelerator(*arguments, default, **platforms):
    """Replaces `lax.platform_dependent`: the branch of GPUs and TPUs, on this machine."""
    del platforms
    return default(*arguments)


@pytest.mark.parametrize("branch", ["cpu", "default"])
def test_norm_of_a_convolution_averages_over_mapped_axes(branch, monkeypatch):
    if branch == "default":
        monkeypatch.setattr(jax.lax, "platform_dependent", on_accelerator)
    x, kernel, scale, bias, _ = data()
    module = BatchNorm(train=True, axis_name="shards", dtype=jnp.float64)
    stats = {"mean": jnp.zeros(8), "var": jnp.ones(8)}
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}

    def run(x):
        return module.apply(variables, x, kernel, mutable=["batch_stats"])

    y, updated = jax.jit(jax.vmap(run, axis_name="shards"))(x.reshape(3, 2, *x.shape[1:]))
    expected, mean, var = one_by_one(x, kernel, scale, bias, None)
    assert_equal_trees(y.reshape(expected.shape), expected)
    for shard in range(3):
        averages = jax.tree.map(lambda leaf: leaf[shard], updated["batch_stats"])  # noqa: B023
        assert_equal_trees(averages, {"mean": 0.1 * mean, "var": 0.9 + 0.1 * var}, rtol=1e-6)


def test_fused_network_matches_one_that_is_not(monkeypatch):
    # Few channels and images: gates that rounding flips would hide the difference of the two.
    model = create_model(
        "resnet26", depths=(1,), widths=(32,), num_classes=3, dtype=jnp.bfloat16, zero_init=False
    )
    x = normal((4, 16, 16, 3))
    variables = model.init(jax.random.key(0), x, train=False)

    def run():
        apply = partial(model.apply, train=True, mutable=["batch_stats"])
        return jax.jit(lambda variables: apply(variables, x))(variables)

    expected = run()
    monkeypatch.setattr(jax.lax, "platform_dependent", on_accelerator)
    actual = run()
    assert actual[0].dtype == expected[0].dtype == jnp.bfloat16
    assert_equal_trees(actual, expected, rtol=3e-2)
