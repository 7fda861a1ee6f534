"""Maximum pooling against Flax and `lax.reduce_window`; average and blur pooling against NumPy."""

from functools import partial

import flax.linen as nn
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.conv_reference import normal
from helpers.networks import run
from hypothesis import assume, given, settings
from jax.test_util import check_grads

from resflax.kernels.pool import avg_pool, avg_pool_same, blur_pool, max_pool, max_pool_by_index


def flax_max_pool(x, *, window=3, stride=2, padding=1):
    return nn.max_pool(x, (window,) * 2, (stride,) * 2, ((padding,) * 2,) * 2)


@partial(jax.jit, static_argnums=0, static_argnames=("window", "stride", "padding"))
def value_and_gradient(pool, x, **options):
    y, transpose = jax.vjp(partial(pool, **options), x)
    # Sums of a few integers are exact in any order.
    g = jnp.arange(1, y.size + 1, dtype=jnp.float32).reshape(y.shape) % 61
    return y, transpose(g.astype(y.dtype))[0]


def pool_by_index(x, *, window=3, stride=2, padding=1):
    return max_pool_by_index(x, window, stride, padding)


def assert_same(x, **options):
    expected = value_and_gradient(flax_max_pool, x, **options)
    for pool in (max_pool, pool_by_index):  # the latter runs on GPUs
        actual = value_and_gradient(pool, x, **options)
        assert actual[0].dtype == x.dtype
        jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    window=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    levels=st.sampled_from([1, 2, 3, 1000]),
    seed=st.integers(0, 9),
)
def test_max_pool_and_its_gradient_match_flax_with_ties(
    size, window, stride, padding, levels, seed
):
    assume(padding < window <= min(size) + 2 * padding)
    x = np.random.default_rng(seed).integers(0, levels, (2, *size, 3))
    options = {"window": window, "stride": stride, "padding": padding}
    assert_same(jnp.asarray(x - levels // 2, jnp.float32), **options)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("size", [(1, 1), (7, 10)])
def test_max_pool_with_default_arguments_matches_flax(size, dtype):
    assert_same(normal((2, *size, 5), dtype))
    assert_same(jnp.zeros((2, *size, 5), dtype))


def test_max_pool_gradient_of_ties_goes_to_the_first():
    gradient = jax.jit(jax.grad(lambda x: max_pool(x, window=3, stride=3, padding=0).sum()))
    for row, column in np.ndindex(3, 3):
        x = np.zeros((1, 3, 3, 1), np.float32)
        x.reshape(-1)[3 * row + column :] = 1
        expected = np.zeros_like(x)
        expected[0, row, column] = 1
        np.testing.assert_array_equal(gradient(x), expected)


@pytest.mark.slow
def test_max_pool_handles_infinities_and_never_returns_padding():
    x = np.full((1, 5, 5, 2), -np.inf, np.float32)
    x[0, 2, 2, 0] = -1e30
    assert_same(jnp.asarray(x))
    np.testing.assert_array_equal(max_pool(jnp.full((1, 4, 4, 1), -7.0)), np.full((1, 2, 2, 1), -7))
    assert_same(jnp.full((1, 5, 5, 2), jnp.inf))


@pytest.mark.parametrize("pool", [max_pool, pool_by_index])
def test_max_pool_jvp_matches_flax(pool):
    x, t = normal((2, 9, 8, 3)), normal((2, 9, 8, 3), seed=1)
    actual = jax.jit(lambda x, t: jax.jvp(pool, (x,), (t,)))(x, t)
    expected = jax.jit(lambda x, t: jax.jvp(flax_max_pool, (x,), (t,)))(x, t)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.slow
def test_max_pool_vmap_matches_a_loop():
    x = jnp.round(normal((3, 2, 7, 8, 4)))
    f = partial(value_and_gradient, max_pool)
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(jax.jit(f)(one) for one in x))
    jax.tree.map(np.testing.assert_array_equal, jax.jit(jax.vmap(f))(x), expected)
    last_axis = jax.jit(jax.vmap(f, in_axes=4))(jnp.moveaxis(x, 0, 4))
    jax.tree.map(np.testing.assert_array_equal, last_axis, expected)


@pytest.mark.slow
def test_max_pool_second_derivatives_match_closed_form():
    x, t = normal((1, 7, 8, 2)), normal((1, 7, 8, 2), seed=1)

    def directional_derivative(pool, x):
        return jnp.vdot(jax.grad(lambda x: jnp.sum(pool(x) ** 3))(x), t)

    # The gradient sums 3 max^2 over the windows that a value wins; its derivative along t is 6 x t.
    wins = jax.grad(lambda x: max_pool(x).sum())(x)
    expected = 6 * x * wins * t
    actual = jax.jit(jax.grad(partial(directional_derivative, max_pool)))(x)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    distinct = jnp.asarray(np.random.default_rng(0).permutation(112), jnp.float32).reshape(x.shape)
    options = {"modes": ("fwd", "rev"), "atol": 1e-2, "rtol": 1e-2, "eps": 0.25}
    for pool in (max_pool, pool_by_index):
        check_grads(pool, (distinct,), order=2, **options)


@pytest.mark.parametrize(("platform", "windows"), [("cpu", 0), ("tpu", 1), ("cuda", 1)])
def test_max_pool_reduces_windows_only_on_accelerators(platform, windows):
    traced = jax.jit(max_pool).trace(jnp.ones((2, 8, 8, 3)))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count('"stablehlo.reduce_window"') == windows
    assert "stablehlo.maximum" in text


def test_max_pool_gradient_on_gpus_scatters_nothing():
    gradient = jax.jit(jax.grad(lambda x: max_pool(x).sum())).trace(jnp.ones((2, 8, 8, 3)))
    texts = {p: gradient.lower(lowering_platforms=(p,)).as_text() for p in ("cuda", "tpu")}
    assert "select_and_scatter" in texts["tpu"]
    assert "scatter" not in texts["cuda"]


@pytest.mark.slow
def test_max_pool_runs_on_eight_devices():
    x = jnp.round(normal((16, 9, 9, 4)))
    expected = jax.jit(partial(value_and_gradient, max_pool))(x)
    shards = x.reshape(8, 2, *x.shape[1:])
    y = jax.pmap(max_pool)(shards)
    np.testing.assert_array_equal(y.reshape(expected[0].shape), expected[0])
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
    spec = jax.sharding.PartitionSpec("batch")
    split = jax.sharding.NamedSharding(mesh, spec)
    compiled = jax.jit(partial(value_and_gradient, max_pool), out_shardings=split).lower(
        jax.device_put(x, split)
    )
    compiled = compiled.compile()
    assert "all-gather" not in compiled.as_text()
    jax.tree.map(np.testing.assert_array_equal, compiled(jax.device_put(x, split)), expected)


SIZES = [(1, 1), (1, 6), (2, 2), (3, 4), (7, 5), (8, 6)]


def mean_of_pixels_inside(x, stride):
    """Returns the means of 2x2 windows that are cut at the image's edges."""
    height, width = (-(-size // stride) for size in x.shape[1:3])
    y = np.zeros((x.shape[0], height, width, x.shape[3]))
    for i, j in np.ndindex(height, width):
        y[:, i, j] = x[:, i * stride : i * stride + 2, j * stride : j * stride + 2].mean((1, 2))
    return y


@pytest.mark.parametrize("size", SIZES)
def test_avg_pool_is_the_mean_of_the_pixels_inside(size):
    x = np.random.default_rng(0).standard_normal((2, *size, 3))
    actual = run(partial(avg_pool, stride=2), jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(actual, mean_of_pixels_inside(x, 2), atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_avg_pool_same_pads_with_zeros_below_and_right(size):
    x = np.random.default_rng(0).standard_normal((2, *size, 3))
    padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    expected = sum(padded[:, i:, j:][:, : size[0], : size[1]] for i in (0, 1) for j in (0, 1)) / 4
    actual = run(avg_pool_same, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [size for size in SIZES if min(size) > 1])
def test_blur_pool_is_a_binomial_filter_of_a_reflected_image(size, stride):
    """Zhang 2019: the outer product of (1, 2, 1) / 4 with itself, at every stride-th pixel."""
    x = np.random.default_rng(0).standard_normal((2, *size, 3))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    row = np.array([1, 2, 1]) / 4
    expected = np.einsum("nhwcij,i,j->nhwc", windows, row, row)[:, ::stride, ::stride]
    actual = run(partial(blur_pool, stride=stride), jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(actual, expected, atol=1e-6)


average_and_blur = pytest.mark.parametrize("pool", [avg_pool, blur_pool])


@pytest.mark.slow
@average_and_blur
def test_average_and_blur_keep_constants_and_dtypes(pool):
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        y = run(partial(pool, stride=2), jnp.full((1, 5, 7, 2), 1.25, dtype))
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, np.full((1, 3, 4, 2), 1.25, dtype))


@average_and_blur
def test_average_and_blur_gradients_are_transposes(pool):
    """Checks that the inner product of A t with g equals that of t with A^T g."""
    t = normal((1, 5, 6, 2))

    def inner_products(t):
        y, transpose = jax.vjp(partial(pool, stride=2), t)
        g = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        return jnp.vdot(y, g), jnp.vdot(t, transpose(g)[0])

    np.testing.assert_allclose(*run(inner_products, t), rtol=1e-5)
