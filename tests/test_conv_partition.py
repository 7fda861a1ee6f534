"""What a convolution under `jit` over a mesh computes, and what the devices exchange."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.conv_cases import CPU_BACKENDS, LAYERS, SAME_3X3
from helpers.conv_reference import assert_close, normal
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from resflax.kernels import conv_backend, conv_general_dilated

COLLECTIVE = re.compile(r" (all-[a-z-]+|collective-[a-z]+|reduce-scatter)(?:-start)?\(")
MEMBERS = 4


@pytest.fixture(params=["xla", *CPU_BACKENDS])
def backend(request):
    with conv_backend(request.param):
        yield request.param


def loss_and_gradients(convolve, options):
    """Returns a function of one member's image and kernel."""
    return jax.value_and_grad(lambda x, w: jnp.sum(jnp.sin(convolve(x, w, **options))), (0, 1))


def compile_over_mesh(f, shape, arrays, specs):
    """Compiles `f` for eight devices, and returns it with the arrays and its collectives."""
    mesh = Mesh(np.array(jax.devices()).reshape(shape), ("member", "batch"))
    arrays = [
        jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip(arrays, specs, strict=True)
    ]
    compiled = jax.jit(f).lower(*arrays).compile()
    return compiled, arrays, set(COLLECTIVE.findall(compiled.as_text()))


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["groups", "taps"])
@pytest.mark.parametrize(
    ("shape", "expected"), [((4, 2), {"all-reduce"}), ((1, 8), {"all-reduce"})]
)
def test_members_over_a_mesh_match_and_gather_nothing(backend, layer, shape, expected):
    (_, *image), kernel, options = LAYERS[layer]
    x, w = normal((MEMBERS, 16, *image)), normal((MEMBERS, *kernel), seed=1) / 12
    specs = PartitionSpec("member", "batch"), PartitionSpec("member")
    run = jax.vmap(loss_and_gradients(conv_general_dilated, options))
    compiled, arrays, collectives = compile_over_mesh(run, shape, (x, w), specs)
    assert collectives == expected
    jax.tree.map(
        assert_close,
        compiled(*arrays),
        jax.vmap(loss_and_gradients(lax.conv_general_dilated, options))(x, w),
    )


def test_members_on_separate_devices_exchange_nothing(backend):
    _, kernel, options = LAYERS["groups"]
    x, w = normal((8, 2, 6, 7, 8)), normal((8, *kernel), seed=1) / 12
    specs = PartitionSpec("member"), PartitionSpec("member")
    run = jax.vmap(loss_and_gradients(conv_general_dilated, options))
    _, _, collectives = compile_over_mesh(run, (8, 1), (x, w), specs)
    assert collectives == set()


def test_batch_and_kernel_over_two_axes_gather_no_images(backend):
    _, kernel, options = LAYERS["groups"]
    x, w = normal((16, 6, 7, 8)), normal(kernel, seed=1) / 12
    run = loss_and_gradients(conv_general_dilated, options)
    specs = PartitionSpec(("member", "batch")), PartitionSpec(None, None, None, "batch")
    compiled, arrays, collectives = compile_over_mesh(run, (4, 2), (x, w), specs)
    assert collectives <= {"all-reduce", "all-gather"}  # the kernel's parts are gathered
    largest = max(gathered_sizes(compiled), default=0)
    assert largest <= w.size
    expected = loss_and_gradients(lax.conv_general_dilated, options)(x, w)
    jax.tree.map(assert_close, compiled(*arrays), expected)


def gathered_sizes(compiled):
    """Returns the number of elements of the result of every all-gather."""
    shapes = re.findall(r"= f32\[([0-9,]+)\]\S* all-gather", compiled.as_text())
    return [np.prod([int(n) for n in shape.split(",")]) for shape in shapes]


def test_batch_that_the_devices_do_not_divide_is_right(backend):
    _, kernel, options = LAYERS["groups"]
    x, w = normal((16, 6, 7, 8)), normal(kernel, seed=1) / 12

    def f(convolve, x, w):
        return loss_and_gradients(convolve, options)(x[:12], w)

    specs = PartitionSpec("batch"), PartitionSpec()
    compiled, arrays, _ = compile_over_mesh(partial(f, conv_general_dilated), (1, 8), (x, w), specs)
    jax.tree.map(assert_close, compiled(*arrays), f(lax.conv_general_dilated, x, w))


def test_loops_and_recomputation_keep_the_rule(backend):
    x, w = normal((16, 6, 6, 8)), normal((3, 3, 3, 2, 8), seed=1) / 5
    options = {**SAME_3X3, "feature_group_count": 4}

    def f(convolve, x, w):
        step = jax.checkpoint(lambda x, w: (jnp.sin(convolve(x, w, **options)), None))
        return jnp.sum(lax.scan(step, x, w)[0] ** 2)

    run = jax.value_and_grad(partial(f, conv_general_dilated), (0, 1))
    specs = PartitionSpec("batch"), PartitionSpec()
    compiled, arrays, collectives = compile_over_mesh(run, (1, 8), (x, w), specs)
    assert collectives == {"all-reduce"}
    expected = jax.value_and_grad(partial(f, lax.conv_general_dilated), (0, 1))(x, w)
    jax.tree.map(assert_close, compiled(*arrays), expected)


def test_partitioned_passes_have_names_for_the_compilation_cache():
    def names(padding):
        options = {**SAME_3X3, "padding": padding, "feature_group_count": 4}
        mesh = Mesh(np.array(jax.devices()), ("batch",))
        x = jax.device_put(normal((8, 6, 6, 8)), NamedSharding(mesh, PartitionSpec("batch")))
        w = jax.device_put(normal((3, 3, 2, 8)), NamedSharding(mesh, PartitionSpec()))
        with conv_backend("cpu"):
            run = jax.jit(lambda x, w: conv_general_dilated(x, w, **options))
            return set(re.findall(r"@(conv_[0-9a-f]+)", run.lower(x, w).as_text()))

    first, again, other = (names(p) for p in (((0, 2), (1, 1)), ((0, 2), (1, 1)), ((2, 0), (1, 1))))
    assert len(first) == 1
    assert first == again
    assert first != other


def test_convolution_without_jit_matches(backend):
    x, w, options = LAYERS["groups"]
    x, w = normal(x), normal(w)
    with jax.disable_jit():
        actual = loss_and_gradients(conv_general_dilated, options)(x, w)
    jax.tree.map(assert_close, actual, loss_and_gradients(lax.conv_general_dilated, options)(x, w))


def test_debug_nans_names_the_convolution(backend):
    x, w, options = LAYERS["groups"]
    x = jnp.full(x, jnp.nan)
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="nan"):
        conv_general_dilated(x, normal(w), **options)
