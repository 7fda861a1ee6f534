"""Derivatives, mapped axes and control flow of a convolution are those of `lax`, on every road."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from helpers.conv_cases import LAYERS, SAME, all_but_winograd, every_layer, loss, point, shapes_of
from helpers.conv_reference import assert_close, normal
from jax import lax
from jax.test_util import check_grads

from resflax.kernels import conv
from resflax.kernels.conv import conv_general_dilated
from resflax.kernels.conv_params import ConvForm


@every_layer
def test_derivatives_of_first_and_second_order_are_those_of_lax(road, layer):
    x, w, tx, tw, how = point(layer)

    def values(convolve, primals, tangents):
        f = partial(loss, convolve, **how)
        grad = jax.grad(f, (0, 1))

        def along(*primals):
            return sum(jax.tree.map(jnp.vdot, grad(*primals), tangents))

        return {
            "jvp": jax.jvp(partial(convolve, **how), primals, tangents),
            "gradient": grad(*primals),
            "forward over reverse": jax.jvp(grad, primals, tangents)[1],
            "reverse over reverse": jax.grad(along, (0, 1))(*primals),
        }

    found = jax.jit(partial(values, conv_general_dilated))((x, w), (tx, tw))
    expected = jax.jit(partial(values, lax.conv_general_dilated))((x, w), (tx, tw))
    jax.tree.map(assert_close, found, expected)


@pytest.mark.parametrize("layer", ["pointwise", "groups"])
def test_derivatives_of_second_order_are_those_of_finite_differences(road, layer):
    x, w, *_, how = point(layer)
    f = jax.jit(partial(conv_general_dilated, **how))
    check_grads(f, (x, w), order=2, modes=("fwd", "rev"), atol=1e-2, rtol=1e-2, eps=1e-2)


# Mapped axes.


def moved(x, axis):
    return x if axis is None else jnp.moveaxis(x, 0, axis)


@all_but_winograd
@pytest.mark.parametrize("reading", ["y", "x", "w"])
def test_vmap_of_each_reading_is_a_loop(road, layer, reading):
    x, w, how = LAYERS[layer]
    groups = how.get("feature_group_count", 1)
    form = ConvForm(x[1:3], w[:2], how["window_strides"], how["padding"], (1, 1), groups)
    a, b, _ = shapes_of(form, x, w)[reading]
    lhs, rhs = normal((3, *a)), normal((3, *b), seed=1)
    one = partial(conv.conv_p.bind, reading=reading, form=form, road=road)

    @jax.jit
    def loops(lhs, rhs):
        return (
            jnp.stack([one(a, rhs[0]) for a in lhs]),
            jnp.stack([one(lhs[0], b) for b in rhs]),
            jnp.stack([one(a, b) for a, b in zip(lhs, rhs, strict=True)]),
            jnp.stack([jnp.stack([one(a, b) for b in rhs]) for a in lhs[:2]]),
        )

    @jax.jit
    def maps(lhs, rhs):
        return (
            jax.vmap(one, (2, None))(moved(lhs, 2), rhs[0]),
            jax.vmap(one, (None, -1))(lhs[0], moved(rhs, -1)),
            jax.vmap(one, (-1, 1))(moved(lhs, -1), moved(rhs, 1)),
            jax.vmap(jax.vmap(one, (None, 0)), (0, None))(lhs[:2], rhs),
            jax.vmap(jax.vmap(one, (0, None)), (None, 0), 1)(lhs[:2], rhs),  # the same, turned
        )

    *found, turned = maps(lhs, rhs)
    expected = loops(lhs, rhs)
    jax.tree.map(assert_close, tuple(found), expected)
    assert_close(turned, expected[-1])


@pytest.mark.parametrize("layer", ["pointwise", "groups"])
def test_gradients_of_members_and_of_examples_are_those_of_a_loop(road, layer):
    x, w, how = LAYERS[layer]
    x, w = normal(x), normal((3, *w), seed=1) / 4
    grad = jax.grad(partial(loss, conv_general_dilated, **how), (0, 1))
    found = jax.jit(jax.vmap(grad, (None, 0)))(x, w)
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(jax.jit(grad)(x, v) for v in w))
    jax.tree.map(assert_close, found, expected)
    found = jax.jit(jax.vmap(grad, (0, None)))(x[:, None], w[0])
    each = (jax.jit(grad)(x[i : i + 1], w[0]) for i in range(len(x)))
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    jax.tree.map(assert_close, found, expected)


# Control flow.


def test_remat_scan_and_cond_have_the_gradient_of_lax(road):
    x, w = normal((4, 9, 8, 32)), normal((3, 3, 3, 32, 32)) / 17
    w = w.at[:, 0, 0, 0, 0].set(jnp.array([0.1, -0.1, 0.2]))  # both branches

    def value(convolve, x, w):
        @jax.checkpoint
        def layer(x, w):
            flip = lambda x: x + convolve(jnp.tanh(x), w, **SAME)  # noqa: E731
            return lax.cond(w[0, 0, 0, 0] > 0, flip, lambda x: 2 * flip(x), x), None

        x, _ = lax.scan(layer, x, w)
        return jnp.sum(jnp.sin(x))

    found = jax.jit(jax.value_and_grad(partial(value, conv_general_dilated), (0, 1)))(x, w)
    expected = jax.jit(jax.value_and_grad(partial(value, lax.conv_general_dilated), (0, 1)))(x, w)
    jax.tree.map(lambda a, b: assert_close(a, b, 3e-5), found, expected)
