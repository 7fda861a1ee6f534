"""A convolution on eight devices matches one device: pmap, jit over a mesh and shard_map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.conv_cases import LAYERS, POINTWISE, all_but_winograd, every_layer
from helpers.conv_reference import assert_close, normal
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from resflax.kernels import conv_backend, conv_general_dilated


def mesh_and_shardings(axis_types=(AxisType.Auto,)):
    """Returns a mesh of eight devices, and its batch and replicated shardings."""
    mesh = Mesh(np.array(jax.devices()), ("batch",), axis_types=axis_types)
    assert mesh.size == 8
    spec = PartitionSpec
    return mesh, NamedSharding(mesh, spec("batch")), NamedSharding(mesh, spec())


def single_device_case(layer):
    """Returns 16 images, a kernel, a loss, and its value and gradients on one device."""
    (_, *image), w, options = LAYERS[layer]
    x, w = normal((16, *image)), normal(w, seed=1) / 12

    def f(x, w):
        return jnp.sum(jnp.sin(conv_general_dilated(x, w, **options)))

    def g(x, w):
        return jnp.sum(jnp.sin(lax.conv_general_dilated(x, w, **options)))

    return x, w, f, jax.jit(jax.value_and_grad(g, (0, 1)))(x, w)


@pytest.mark.slow
@all_but_winograd
def test_pmap_matches_one_device(backend, layer):
    x, w, f, (value, (dx, dw)) = single_device_case(layer)
    run = jax.pmap(jax.value_and_grad(f, (0, 1)), in_axes=(0, None))
    values, (dxs, dws) = run(x.reshape(8, 2, *x.shape[1:]), w)
    assert_close(values.sum(), value)
    assert_close(dxs.reshape(x.shape), dx)
    assert_close(dws.sum(0), dw)


@pytest.mark.slow
@every_layer
def test_jit_over_a_mesh_matches_and_gathers_no_images(backend, layer):
    x, w, f, (value, (dx, dw)) = single_device_case(layer)
    _, batch_sharded, replicated = mesh_and_shardings()
    x, w = jax.device_put(x, batch_sharded), jax.device_put(w, replicated)
    run = jax.jit(
        jax.value_and_grad(f, (0, 1)), out_shardings=(replicated, (batch_sharded, replicated))
    )
    compiled = run.lower(x, w).compile()
    text = compiled.as_text()
    assert "all-reduce" in text
    assert not any(op in text for op in ("all-gather", "all-to-all", "collective-permute"))
    actual, (actual_dx, actual_dw) = compiled(x, w)
    assert_close(actual, value)
    assert_close(actual_dx, dx)
    assert_close(actual_dw, dw)


def test_product_over_many_pixels_gathers_no_images():
    # From 8192 pixels on, the product is computed in two halves.
    _, batch_sharded, replicated = mesh_and_shardings()
    x = jax.device_put(normal((32, 16, 16, 8)), batch_sharded)
    w = jax.device_put(normal((1, 1, 8, 8)), replicated)
    grad = jax.grad(lambda w, x: jnp.sum(jnp.sin(conv_general_dilated(x, w, **POINTWISE))))
    with conv_backend("cpu"):
        compiled = jax.jit(grad, out_shardings=replicated).lower(w, x).compile()
    text = compiled.as_text()
    assert "all-reduce" in text
    assert not any(op in text for op in ("all-gather", "all-to-all", "collective-permute"))
    expected = jax.grad(lambda w, x: jnp.sum(jnp.sin(lax.conv_general_dilated(x, w, **POINTWISE))))
    assert_close(compiled(w, x), expected(w, x))


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["pointwise", "winograd", "taps"])
def test_jit_over_explicit_mesh_axes_matches_one_device(backend, layer):
    x, w, f, (value, (dx, dw)) = single_device_case(layer)
    _, batch_sharded, replicated = mesh_and_shardings((AxisType.Explicit,))
    x, w = jax.device_put(x, batch_sharded), jax.device_put(w, replicated)
    actual, (actual_dx, actual_dw) = jax.jit(jax.value_and_grad(f, (0, 1)))(x, w)
    assert_close(actual, value)
    assert_close(actual_dx, dx)
    assert_close(actual_dw, dw)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "check_vma"), [*((layer, True) for layer in LAYERS), ("taps", False)]
)
def test_shard_map_matches_one_device(backend, layer, check_vma):
    x, w, f, (value, (dx, dw)) = single_device_case(layer)
    mesh, *_ = mesh_and_shardings()
    spec = PartitionSpec

    def per_device(x, w):
        value, (dx, dw) = jax.value_and_grad(f, (0, 1))(x, w)
        if not check_vma:  # otherwise JAX sums the gradient of a replicated kernel
            dw = lax.psum(dw, "batch")
        return lax.psum(value, "batch"), (dx, dw)

    run = jax.shard_map(
        per_device,
        mesh=mesh,
        in_specs=(spec("batch"), spec()),
        out_specs=(spec(), (spec("batch"), spec())),
        check_vma=check_vma,
    )
    actual, (actual_dx, actual_dw) = jax.jit(run)(x, w)
    assert_close(actual, value)
    assert_close(actual_dx, dx)
    assert_close(actual_dw, dw)


@pytest.mark.slow
def test_shard_map_over_one_of_two_axes_matches_one_device(backend):
    x, w, f, (value, (_, dw)) = single_device_case("winograd")
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("manual", "auto"))
    spec = PartitionSpec
    x = jax.device_put(x, NamedSharding(mesh, spec(("manual", "auto"))))
    w = jax.device_put(w, NamedSharding(mesh, spec()))

    def per_device(x, w):
        value, dw = jax.value_and_grad(f, 1)(x, w)
        return lax.psum(value, "manual"), dw

    run = jax.shard_map(
        per_device,
        mesh=mesh,
        in_specs=(spec("manual"), spec()),
        out_specs=(spec(), spec()),
        axis_names={"manual"},
    )
    compiled = jax.jit(run).lower(x, w).compile()
    actual, actual_dw = compiled(x, w)
    assert_close(actual, value)
    assert_close(actual_dw, dw)
    assert "all-gather" not in compiled.as_text()
