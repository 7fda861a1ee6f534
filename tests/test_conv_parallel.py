"""A convolution on eight devices is that on one: under pmap, jit over a mesh and shard_map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.conv_cases import LAYERS, ONE, all_but_winograd, every_layer
from helpers.conv_reference import assert_close, normal
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from resflax.kernels import backend as roads
from resflax.kernels.conv import conv_general_dilated


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
