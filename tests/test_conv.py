"""`resflax.nn.conv` against float64 and `lax.conv_general_dilated`, on every road."""

import os
import subprocess
import sys
from functools import partial

import hypothesis.strategies as st
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.test_util import check_grads
from reference import assert_close, lowered, normal, reference

from resflax import create_model
from resflax.nn import conv, cpu_conv, onednn
from resflax.nn import road as roads
from resflax.nn.conv import conv_general_dilated
from resflax.nn.conv_form import ConvForm

REASON = onednn.why_not()
needs_onednn = pytest.mark.skipif(REASON is not None, reason=str(REASON))
FAST = ["cpu", pytest.param("onednn", marks=needs_onednn)]
NHWC = ("NHWC", "HWIO", "NHWC")
SAME = {
    "window_strides": (1, 1),
    "padding": ((1, 1), (1, 1)),
    "dimension_numbers": NHWC,
}
ONE = {"window_strides": (1, 1), "padding": ((0, 0), (0, 0)), "dimension_numbers": NHWC}
# For each kind of network layer one: image, kernel, how. The cpu road takes each another way.
LAYERS = {
    "pointwise": ((2, 6, 5, 8), (1, 1, 8, 12), {**ONE, "window_strides": (2, 2)}),
    "winograd": ((4, 9, 8, 32), (3, 3, 32, 32), SAME),
    "taps": ((2, 7, 8, 8), (3, 3, 8, 6), {**SAME, "window_strides": (2, 2)}),
    "groups": ((2, 6, 7, 8), (3, 3, 2, 12), {**SAME, "feature_group_count": 4}),
}
every_layer = pytest.mark.parametrize("layer", LAYERS)
all_but_winograd = pytest.mark.parametrize(
    "layer", sorted(LAYERS.keys() - {"winograd"})
)  # it compiles long


@pytest.fixture(params=FAST)
def road(request, monkeypatch):
    monkeypatch.setattr(roads, "ROAD", request.param)
    return request.param


def pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


def shapes_of(form, x, w):
    """The shapes of each reading's operands and of its result."""
    y = form.shape("y", x, w)
    return {"y": (x, w, y), "x": (y, w, x), "w": (x, y, w)}


def all_readings(operands, form, road):
    @jax.jit
    def run(operands):
        return {
            reading: conv.conv_p.bind(*pair, reading=reading, form=form, road=road)
            for reading, pair in operands.items()
        }

    return run(operands)


def check_readings(x, w, road, *, dtype=jnp.float32, tolerance=1e-5, **how):
    form = ConvForm(x[1:3], w[:2], **how)
    shapes = shapes_of(form, x, w)
    operands = {
        reading: (normal(a, dtype), normal(b, dtype, seed=1))
        for reading, (a, b, _) in shapes.items()
    }
    found = all_readings(operands, form, road)
    for reading, (_, _, shape) in shapes.items():
        assert found[reading].dtype == dtype
        expected = reference(reading, *operands[reading], shape, **how)
        assert_close(found[reading], expected, tolerance)


PLAIN = {"strides": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}


@pytest.mark.parametrize("road", ["plain", *FAST])
@settings(deadline=None, max_examples=15)
@given(
    batch=st.integers(1, 3),
    size=pairs(1, 13),
    kernel=st.sampled_from([(k, k) for k in (1, 1, 2, 3, 3, 5, 7)] + [(1, 3), (3, 1)]),
    widths=st.sampled_from([(1, 1), (3, 16), (16, 5), (8, 9), (40, 32), (1, 2)]),
    groups=st.sampled_from([1, 1, 1, 2, 8]),
    strides=pairs(1, 3),
    padding=st.tuples(pairs(0, 3), pairs(0, 3)),
    dilation=pairs(1, 2),
)
@example(4, (9, 8), (3, 3), (32, 32), 1, (1, 1), ((1, 1), (1, 1)), (1, 1))  # Winograd
@example(3, (11, 13), (3, 3), (33, 40), 1, (1, 1), ((0, 2), (2, 1)), (1, 1))
@example(2, (6, 7), (1, 1), (9, 5), 1, (2, 3), ((0, 0), (0, 0)), (1, 1))  # one product
@example(2, (6, 7), (3, 3), (1, 1), 16, (2, 1), ((1, 1), (1, 1)), (1, 1))  # depthwise
@example(1, (5, 6), (3, 3), (8, 8), 1, (1, 1), ((3, 0), (0, 3)), (1, 1))  # wider than its kernel
@example(1, (5, 6), (3, 3), (8, 8), 1, (1, 1), ((3, 1), (2, 2)), (1, 1))  # XLA's own goes wrong
def test_the_three_readings_are_those_of_float64(
    road, batch, size, kernel, widths, groups, strides, padding, dilation
):
    x = (batch, *size, groups * widths[0])
    w = (*kernel, widths[0], groups * widths[1])
    how = {"strides": strides, "padding": padding, "dilation": dilation, "groups": groups}
    assume(min(ConvForm(size, kernel, **how).output) > 0)
    check_readings(x, w, road, **how)


@pytest.mark.parametrize("road", ["plain", *FAST])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
@pytest.mark.parametrize("padding", [((-1, 1), (0, -2)), ((-2, -1), (1, 3))])
def test_negative_padding_crops(road, kernel, strides, padding):
    how = {"strides": strides, "padding": padding, "dilation": (1, 1), "groups": 1}
    check_readings((2, 8, 9, 8), (kernel, kernel, 8, 10), road, **how)


@settings(deadline=None, max_examples=30)
@given(
    size=pairs(5, 13),
    kernel=pairs(1, 7),
    strides=pairs(1, 3),
    padding=st.tuples(pairs(-2, 3), pairs(-2, 3)),
    dilation=pairs(1, 3),
)
def test_the_shape_of_a_result_is_that_of_lax_even_if_it_is_empty(
    size, kernel, strides, padding, dilation
):
    x, w = jnp.zeros((2, *size, 6)), jnp.zeros((*kernel, 2, 9))
    how = (strides, padding, None, dilation, NHWC, 3)
    expected = jax.eval_shape(lambda x, w: lax.conv_general_dilated(x, w, *how), x, w)
    found = jax.eval_shape(lambda x, w: conv_general_dilated(x, w, *how), x, w)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)


@pytest.mark.parametrize("taken", [True, False])
def test_winograd_runs_in_parts_of_the_batch_only_if_these_are_many_bytes(taken, monkeypatch):
    monkeypatch.setattr(cpu_conv, "CHUNK_BYTES", 20_000 if taken else 10**9)
    x, w = (6, 9, 8, 32), (3, 3, 32, 32)
    form = ConvForm(x[1:3], w[:2], **PLAIN)
    for reading, (a, b, _) in shapes_of(form, x, w).items():
        text = lowered(
            lambda lhs, rhs, reading=reading: conv.conv_p.bind(
                lhs, rhs, reading=reading, form=form, road="cpu"
            ),
            "cpu",
            normal(a),
            normal(b),
        )
        assert ("stablehlo.while" in text) == taken
        assert text.count("stablehlo.dot_general") >= 16
        assert "stablehlo.convolution" not in text
    check_readings(x, w, "cpu", **PLAIN)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("groups", [1, 4])
def test_bfloat16_is_within_one_rounding_of_float64(road, kernel, groups):
    if road == "onednn" and not onednn.supports(jnp.bfloat16):
        pytest.skip("oneDNN has no bfloat16 on this CPU")
    padding = ((kernel // 2,) * 2,) * 2
    how = {**PLAIN, "padding": padding, "groups": groups}
    x, w = (3, 11, 10, 32), (kernel, kernel, 32 // groups, 32)
    check_readings(x, w, road, dtype=jnp.bfloat16, tolerance=2**-8, **how)


@every_layer
def test_float16_and_float64_are_computed_by_lax(road, layer):
    x, w, how = LAYERS[layer]

    def values(convolve, x, w):
        out, transpose = jax.vjp(lambda x, w: convolve(x, w, **how), x, w)
        return out, *transpose(out)

    def check(dtype):
        a, b = normal(x, dtype), normal(w, dtype)
        found = jax.jit(partial(values, conv_general_dilated))(a, b)
        expected = jax.jit(partial(values, lax.conv_general_dilated))(a, b)
        assert found[0].dtype == dtype
        jax.tree.map(np.testing.assert_array_equal, found, expected)

    check(jnp.float16)
    with jax.enable_x64(True):
        check(jnp.float64)


@every_layer
def test_an_empty_batch_has_an_empty_result_and_a_zero_gradient(road, layer):
    (_, *image), w, how = LAYERS[layer]
    x, w = jnp.zeros((0, *image)), normal(w)
    y = conv_general_dilated(x, w, **how)
    assert y.shape == jax.eval_shape(lambda: lax.conv_general_dilated(x, w, **how)).shape
    dx, dw = jax.grad(lambda x, w: conv_general_dilated(x, w, **how).sum(), (0, 1))(x, w)
    assert dx.shape == x.shape
    np.testing.assert_array_equal(dw, np.zeros(w.shape))


# Derivatives.


def loss(convolve, x, w, **how):
    """Not bilinear, so that its second derivatives hold every pair of operands."""
    return jnp.sum(jnp.sin(convolve(x, w, **how)) * jnp.cos(jnp.mean(w)))


def point(layer):
    x, w, how = LAYERS[layer]
    scale = np.sqrt(np.prod(w[:3]))
    return normal(x), normal(w, seed=1) / scale, normal(x, seed=2), normal(w, seed=3) / scale, how


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


# Several devices.


def spread(types=(AxisType.Auto,)):
    mesh = Mesh(np.array(jax.devices()), ("batch",), axis_types=types)
    assert mesh.size == 8
    spec = PartitionSpec
    return mesh, NamedSharding(mesh, spec("batch")), NamedSharding(mesh, spec())


def eight(layer):
    """A global batch of 16 images, a kernel, and the loss's value and gradients on one device."""
    (_, *image), w, how = LAYERS[layer]
    x, w = normal((16, *image)), normal(w, seed=1) / 12

    def f(x, w):
        return jnp.sum(jnp.sin(conv_general_dilated(x, w, **how)))

    def g(x, w):
        return jnp.sum(jnp.sin(lax.conv_general_dilated(x, w, **how)))

    return x, w, f, jax.jit(jax.value_and_grad(g, (0, 1)))(x, w)


@all_but_winograd
def test_pmap_on_eight_devices_is_one_device(road, layer):
    x, w, f, (value, (dx, dw)) = eight(layer)
    run = jax.pmap(jax.value_and_grad(f, (0, 1)), in_axes=(0, None))
    values, (dxs, dws) = run(x.reshape(8, 2, *x.shape[1:]), w)
    assert_close(values.sum(), value)
    assert_close(dxs.reshape(x.shape), dx)
    assert_close(dws.sum(0), dw)


@every_layer
def test_jit_over_a_mesh_is_one_device_and_gathers_no_images(road, layer):
    x, w, f, (value, (dx, dw)) = eight(layer)
    _, split, whole = spread()
    x, w = jax.device_put(x, split), jax.device_put(w, whole)
    run = jax.jit(jax.value_and_grad(f, (0, 1)), out_shardings=(whole, (split, whole)))
    compiled = run.lower(x, w).compile()
    text = compiled.as_text()
    assert "all-reduce" in text
    if layer != "groups":  # XLA's own kernel gradient of a grouped convolution gathers
        assert not any(op in text for op in ("all-gather", "all-to-all", "collective-permute"))
    found, (found_dx, found_dw) = compiled(x, w)
    assert_close(found, value)
    assert_close(found_dx, dx)
    assert_close(found_dw, dw)


def test_a_product_over_many_pixels_gathers_no_images_over_a_mesh(monkeypatch):
    monkeypatch.setattr(roads, "ROAD", "cpu")
    _, split, whole = spread()
    x = jax.device_put(normal((32, 16, 16, 8)), split)  # 8192 pixels and more are taken in halves
    w = jax.device_put(normal((1, 1, 8, 8)), whole)
    grad = jax.grad(lambda w, x: jnp.sum(jnp.sin(conv_general_dilated(x, w, **ONE))))
    compiled = jax.jit(grad, out_shardings=whole).lower(w, x).compile()
    text = compiled.as_text()
    assert "all-reduce" in text
    assert not any(op in text for op in ("all-gather", "all-to-all", "collective-permute"))
    plain = jax.grad(lambda w, x: jnp.sum(jnp.sin(lax.conv_general_dilated(x, w, **ONE))))
    assert_close(compiled(w, x), plain(w, x))


@pytest.mark.parametrize("layer", ["pointwise", "winograd", "taps"])
def test_jit_over_a_mesh_of_explicit_axes_is_one_device(road, layer):
    x, w, f, (value, (dx, dw)) = eight(layer)
    _, split, whole = spread((AxisType.Explicit,))
    x, w = jax.device_put(x, split), jax.device_put(w, whole)
    found, (found_dx, found_dw) = jax.jit(jax.value_and_grad(f, (0, 1)))(x, w)
    assert_close(found, value)
    assert_close(found_dx, dx)
    assert_close(found_dw, dw)


@pytest.mark.parametrize(
    ("layer", "check_vma"), [*((layer, True) for layer in LAYERS), ("taps", False)]
)
def test_shard_map_on_eight_devices_is_one_device(road, layer, check_vma):
    x, w, f, (value, (dx, dw)) = eight(layer)
    mesh, *_ = spread()
    spec = PartitionSpec

    def part(x, w):
        value, (dx, dw) = jax.value_and_grad(f, (0, 1))(x, w)
        if not check_vma:  # else the gradient of a replicated kernel is summed by itself
            dw = lax.psum(dw, "batch")
        return lax.psum(value, "batch"), (dx, dw)

    run = jax.shard_map(
        part,
        mesh=mesh,
        in_specs=(spec("batch"), spec()),
        out_specs=(spec(), (spec("batch"), spec())),
        check_vma=check_vma,
    )
    found, (found_dx, found_dw) = jax.jit(run)(x, w)
    assert_close(found, value)
    assert_close(found_dx, dx)
    assert_close(found_dw, dw)


def test_shard_map_over_one_of_two_axes_is_one_device(road):
    x, w, f, (value, (_, dw)) = eight("winograd")
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("manual", "auto"))
    spec = PartitionSpec
    x = jax.device_put(x, NamedSharding(mesh, spec(("manual", "auto"))))
    w = jax.device_put(w, NamedSharding(mesh, spec()))

    def part(x, w):
        value, dw = jax.value_and_grad(f, 1)(x, w)
        return lax.psum(value, "manual"), dw

    run = jax.shard_map(
        part,
        mesh=mesh,
        in_specs=(spec("manual"), spec()),
        out_specs=(spec(), spec()),
        axis_names={"manual"},
    )
    compiled = jax.jit(run).lower(x, w).compile()
    found, found_dw = compiled(x, w)
    assert_close(found, value)
    assert_close(found_dw, dw)
    assert "all-gather" not in compiled.as_text()


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


# Other platforms.


@every_layer
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_other_platforms_get_one_convolution_a_reading(road, layer, platform):
    x, w, how = LAYERS[layer]
    y = partial(conv_general_dilated, **how)
    text = lowered(y, platform, normal(x), normal(w))
    assert text.count("stablehlo.convolution") == 1
    reverse = lowered(lambda x, w, g: jax.vjp(y, x, w)[1](g), platform, *vjp_args(y, x, w))
    assert reverse.count("stablehlo.convolution") == 2
    assert not any(op in text + reverse for op in ("custom_call", "while", "dot_general"))


def vjp_args(y, x, w):
    x, w = normal(x), normal(w)
    out = jax.eval_shape(y, x, w)
    return x, w, jnp.zeros(out.shape, out.dtype)


def test_the_cpu_gets_a_product_for_a_pointwise_convolution(monkeypatch):
    monkeypatch.setattr(roads, "ROAD", "cpu")
    x, w, how = LAYERS["pointwise"]
    text = lowered(lambda x, w: conv_general_dilated(x, w, **how), "cpu", normal(x), normal(w))
    assert text.count("stablehlo.dot_general") == 1
    assert "stablehlo.convolution" not in text
    assert "custom_call" not in text


@needs_onednn
def test_the_cpu_gets_onednn_by_default_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(roads, "ROAD", "auto")
    for x, w, how in LAYERS.values():
        y = lambda x, w, how=how: conv_general_dilated(x, w, **how)  # noqa: E731
        text = lowered(y, "cpu", normal(x), normal(w))
        assert f"@{onednn.TARGET}" in text
        assert "stablehlo.convolution" not in text


def test_the_cpu_gets_no_custom_call_where_onednn_is_missing(monkeypatch):
    monkeypatch.setattr(roads, "ROAD", "auto")
    monkeypatch.setattr(onednn, "supports", lambda dtype: False)
    x, w, how = LAYERS["winograd"]
    text = lowered(lambda x, w: conv_general_dilated(x, w, **how), "cpu", normal(x), normal(w))
    assert "custom_call" not in text
    assert text.count("stablehlo.dot_general") >= 16


def test_the_plain_road_is_a_convolution_on_the_cpu(monkeypatch):
    monkeypatch.setattr(roads, "ROAD", "plain")
    for x, w, how in LAYERS.values():
        y = lambda x, w, how=how: conv_general_dilated(x, w, **how)  # noqa: E731
        assert lowered(y, "cpu", normal(x), normal(w)).count("stablehlo.convolution") == 1


@pytest.mark.parametrize("road", ["auto", "cpu"])
def test_what_is_exported_runs_everywhere(road, monkeypatch):
    monkeypatch.setattr(roads, "ROAD", road)
    x, w, *_, how = point("winograd")

    def f(x, w):
        return loss(conv_general_dilated, x, w, **how)

    run = jax.jit(jax.value_and_grad(f, (0, 1)))
    exported = jax.export.export(run, platforms=("cpu", "cuda", "tpu"))(x, w)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert "custom_call" not in exported.mlir_module()
    expected = jax.value_and_grad(partial(loss, lax.conv_general_dilated, **how), (0, 1))(x, w)
    jax.tree.map(assert_close, exported.call(x, w), expected)
    pytest.importorskip("flatbuffers", reason="jax.export needs it to serialise")
    again = jax.export.deserialize(exported.serialize())
    jax.tree.map(assert_close, again.call(x, w), expected)


@pytest.mark.parametrize("precision", ["highest", "bfloat16"])
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_default_precision_where_it_is_called_holds(precision, platform):
    x, w, how = LAYERS["winograd"]

    def text(convolve):
        def f(x, w):
            with jax.default_matmul_precision(precision):
                return convolve(x, w, **how)

        module = lowered(f, platform, normal(x), normal(w))
        lines = [line for line in module.splitlines() if "stablehlo.convolution" in line]
        return [line.split("precision_config =")[1].split("]")[0] for line in lines]

    assert text(conv_general_dilated) == text(lax.conv_general_dilated)


# What goes to JAX's own.

FOREIGN = {
    "string padding": {"padding": "SAME"},
    "dilated images": {"lhs_dilation": (2, 1)},
    "channels first": {"dimension_numbers": None},
    "another layout": {"dimension_numbers": ("NHWC", "OHWI", "NHWC")},
    "precision": {"precision": lax.Precision.HIGHEST},
    "result's dtype": {"preferred_element_type": jnp.float32},
    "batch groups": {"batch_group_count": 2},
    "images and kernels of one axis less": {
        "window_strides": (1,),
        "padding": ((1, 1),),
        "dimension_numbers": ("NHC", "HIO", "NHC"),
    },
}


def same_program(how, x, w):
    """The lowered text of lax's call, which must be ours too."""
    theirs = lowered(lambda x, w: lax.conv_general_dilated(x, w, **how), "cpu", x, w)
    assert lowered(lambda x, w: conv_general_dilated(x, w, **how), "cpu", x, w) == theirs
    return theirs


@pytest.mark.parametrize("what", FOREIGN)
def test_what_is_not_ours_is_the_program_of_lax(road, what):
    how = {**SAME, **FOREIGN[what]}
    rank = 2 + len(how["window_strides"])
    x, w = normal((4, 8, 8, 8)[-rank:]), normal((3, 3, 8, 8)[-rank:])
    if what == "channels first":
        w = normal((8, 8, 3, 3))
    assert "stablehlo.convolution" in same_program(how, x, w)


def test_integers_are_the_program_of_lax(road):
    x, w = jnp.ones((2, 9, 8, 8), jnp.int32), jnp.ones((3, 3, 8, 8), jnp.int32)
    same_program(SAME, x, w)


def test_the_layout_that_flax_passes_is_ours(monkeypatch):
    monkeypatch.setattr(roads, "ROAD", "cpu")
    x, w, how = LAYERS["pointwise"]
    numbers = lax.conv_dimension_numbers(x, w, NHWC)
    how = {**how, "dimension_numbers": numbers, "precision": None, "preferred_element_type": None}
    text = lowered(lambda x, w: conv_general_dilated(x, w, **how), "cpu", normal(x), normal(w))
    assert "stablehlo.convolution" not in text


@pytest.mark.parametrize(
    ("x", "w", "how"),
    [
        (jnp.zeros((2, 9, 8, 8)), jnp.zeros((3, 3, 8, 8), jnp.bfloat16), {}),
        (jnp.zeros((2, 9, 8, 8)), jnp.zeros((3, 3, 7, 8)), {}),
        (jnp.zeros((2, 9, 8, 8)), jnp.zeros((3, 3, 4, 7)), {"feature_group_count": 2}),
        (jnp.zeros((2, 9, 8, 8)), jnp.zeros((3, 3, 8)), {}),
        (jnp.zeros((2, 9, 8, 8)), jnp.zeros((3, 3, 8, 8)), {"feature_group_count": 0}),
        (jnp.zeros((2, 9, 8, 8)), jnp.zeros((3, 3, 8, 8)), {"window_strides": (1,)}),
        (jnp.zeros((2, 9, 8, 8)), jnp.zeros((3, 3, 8, 8)), {"rhs_dilation": (0, 1)}),
        (jnp.zeros((2, 9, 8, 8)), jnp.zeros((3, 3, 8, 8)), {"padding": ((1, 1),)}),
        (jnp.zeros((2, 9, 8, 8)), jnp.zeros((3, 3, 8, 8)), {"padding": (1, 1)}),
    ],
    ids=lambda value: str(value if isinstance(value, dict) else value.shape),
)
def test_what_does_not_fit_is_the_error_of_lax(road, x, w, how):
    with pytest.raises((TypeError, ValueError)) as expected:
        lax.conv_general_dilated(x, w, **{**SAME, **how})
    with pytest.raises(expected.type) as found:
        conv_general_dilated(x, w, **{**SAME, **how})
    assert str(found.value) == str(expected.value)


def test_an_unknown_road_is_one_line_at_import():
    done = subprocess.run(
        [sys.executable, "-c", "import resflax.nn.conv"],
        env={**os.environ, "RESFLAX_CONV": "nonsense"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said.endswith(
        "unknown RESFLAX_CONV 'nonsense': expected one of auto, plain, cpu, onednn"
    )


# Whole networks.


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("resnet18", {"widths": (32,), "depths": (1,), "stem_width": 32}),
        ("resnet50", {"widths": (8,), "depths": (1,), "stem": "imagenet", "zero_init": False}),
    ],
)
def test_a_network_has_the_logits_and_gradients_of_the_plain_road(name, fields, monkeypatch):
    images, labels = normal((8, 10, 10, 3)), jnp.arange(8) % 10
    model = create_model(name, **{"stem": "cifar", "num_classes": 10, **fields})
    variables = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(0))

    def run(road):
        monkeypatch.setattr(roads, "ROAD", road)

        def value(params):
            logits, _ = model.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
            return -jnp.mean(picked), logits

        return jax.jit(jax.grad(value, has_aux=True))(variables["params"])

    expected, expected_logits = run("plain")
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    assert largest > 1e-3
    for road in ["cpu"] + ["onednn"] * (REASON is None):
        gradients, logits = run(road)
        assert_close(logits, expected_logits, 1e-4)
        for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * largest)
