"""Derivatives, mapped axes and control flow of convolutions match `lax` on every CPU backend."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from helpers.conv_cases import (
    LAYERS,
    SAME_3X3,
    all_but_winograd,
    every_layer,
    example_of,
    loss,
    pass_shapes,
)
from helpers.conv_reference import assert_close, normal
from jax import lax
from jax.test_util import check_grads

from resflax.kernels import conv, conv_general_dilated
from resflax.kernels.conv_params import ConvParams


@pytest.mark.slow
@every_layer
def test_first_and_second_derivatives_match_lax(backend, layer):
    x, w, tx, tw, options = example_of(layer)

    def derivatives(convolve, primals, tangents):
        f = partial(loss, convolve, **options)
        grad = jax.grad(f, (0, 1))

        def directional_derivative(*primals):
            return sum(jax.tree.map(jnp.vdot, grad(*primals), tangents))

        return {
            "jvp": jax.jvp(partial(convolve, **options), primals, tangents),
            "gradient": grad(*primals),
            "forward over reverse": jax.jvp(grad, primals, tangents)[1],
            "reverse over reverse": jax.grad(directional_derivative, (0, 1))(*primals),
        }

    actual = jax.jit(partial(derivatives, conv_general_dilated))((x, w), (tx, tw))
    expected = jax.jit(partial(derivatives, lax.conv_general_dilated))((x, w), (tx, tw))
    jax.tree.map(assert_close, actual, expected)


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["pointwise", "groups"])
def test_second_derivatives_match_finite_differences(backend, layer):
    x, w, *_, options = example_of(layer)
    f = jax.jit(partial(conv_general_dilated, **options))
    check_grads(f, (x, w), order=2, modes=("fwd", "rev"), atol=1e-2, rtol=1e-2, eps=1e-2)


# Mapped axes.


@pytest.mark.slow
@all_but_winograd
@pytest.mark.parametrize("conv_pass", ["fwd", "dgrad", "wgrad"])
def test_vmap_of_each_pass_matches_a_loop(backend, layer, conv_pass):
    x, w, options = LAYERS[layer]
    groups = options.get("feature_group_count", 1)
    strides, padding = options["window_strides"], options["padding"]
    params = ConvParams(x[1:3], w[:2], strides, padding, (1, 1), groups)
    a, b, _ = pass_shapes(params, x, w)[conv_pass]
    lhs, rhs = normal((3, *a)), normal((3, *b), seed=1)
    run = partial(conv.conv_p.bind, conv_pass=conv_pass, params=params, backend=backend)

    @jax.jit
    def loops(lhs, rhs):
        return (
            jnp.stack([run(a, rhs[0]) for a in lhs]),
            jnp.stack([run(lhs[0], b) for b in rhs]),
            jnp.stack([run(a, b) for a, b in zip(lhs, rhs, strict=True)]),
            jnp.stack([jnp.stack([run(a, b) for b in rhs]) for a in lhs[:2]]),
        )

    @jax.jit
    def maps(lhs, rhs):
        return (
            jax.vmap(run, (2, None))(jnp.moveaxis(lhs, 0, 2), rhs[0]),
            jax.vmap(run, (None, -1))(lhs[0], jnp.moveaxis(rhs, 0, -1)),
            jax.vmap(run, (-1, 1))(jnp.moveaxis(lhs, 0, -1), jnp.moveaxis(rhs, 0, 1)),
            jax.vmap(jax.vmap(run, (None, 0)), (0, None))(lhs[:2], rhs),
            jax.vmap(jax.vmap(run, (0, None)), (None, 0), 1)(lhs[:2], rhs),  # nested differently
        )

    *actual, nested_differently = maps(lhs, rhs)
    expected = loops(lhs, rhs)
    jax.tree.map(assert_close, tuple(actual), expected)
    assert_close(nested_differently, expected[-1])


@pytest.mark.parametrize("layer", ["pointwise", "groups"])
def test_gradients_per_member_and_per_example_match_a_loop(backend, layer):
    x, w, options = LAYERS[layer]
    x, w = normal(x), normal((3, *w), seed=1) / 4
    grad = jax.grad(partial(loss, conv_general_dilated, **options), (0, 1))
    actual = jax.jit(jax.vmap(grad, (None, 0)))(x, w)
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(jax.jit(grad)(x, v) for v in w))
    jax.tree.map(assert_close, actual, expected)
    actual = jax.jit(jax.vmap(grad, (0, None)))(x[:, None], w[0])
    per_example = (jax.jit(grad)(x[i : i + 1], w[0]) for i in range(len(x)))
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *per_example)
    jax.tree.map(assert_close, actual, expected)


# Control flow.


@pytest.mark.slow
def test_remat_scan_and_cond_gradients_match_lax(backend):
    x, w = normal((4, 9, 8, 32)), normal((3, 3, 3, 32, 32)) / 17
    w = w.at[:, 0, 0, 0, 0].set(jnp.array([0.1, -0.1, 0.2]))  # takes both branches

    def value(convolve, x, w):
        @jax.checkpoint
        def layer(x, w):
            residual = lambda x: x + convolve(jnp.tanh(x), w, **SAME_3X3)  # noqa: E731
            return lax.cond(w[0, 0, 0, 0] > 0, residual, lambda x: 2 * residual(x), x), None

        x, _ = lax.scan(layer, x, w)
        return jnp.sum(jnp.sin(x))

    actual = jax.jit(jax.value_and_grad(partial(value, conv_general_dilated), (0, 1)))(x, w)
    expected = jax.jit(jax.value_and_grad(partial(value, lax.conv_general_dilated), (0, 1)))(x, w)
    jax.tree.map(lambda a, b: assert_close(a, b, 3e-5), actual, expected)
