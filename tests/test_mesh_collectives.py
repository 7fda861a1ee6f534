"""A training step under `jit` over a mesh needs nothing but all-reduces, for every family."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.conv_cases import CPU_BACKENDS
from helpers.conv_reference import assert_close, normal
from helpers.small_specs import shrink
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from resflax.kernels import conv_backend, conv_general_dilated
from resflax.nn import ResNet
from resflax.train import create_state, make_optimizer, make_train_step, stack_states
from resflax.zoo import get_spec

OPTIMIZER = make_optimizer("sgd", 0.1, momentum=0.0)
COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|all-to-all|collective-[a-z]+|reduce-scatter)(?:-start)?\("
)
# Less time in LLVM; the program that is checked is the same.
FAST = {"xla_backend_optimization_level": "0"}
FAMILIES = (
    "cifar_preact_resnet164",
    "cifar_resnext29_8x64d",
    "resnet18d",
    "resnetaa50d",
    "resnetblur50d",
    "resnetrs50",
    "ecaresnext26t_32x4d",
    "seresnext50_32x4d",
    "senet154",
    "resnetv2_50d_frn",
    "resnetv2_50x1_bit",
)


def small_model(name, **overrides):
    return ResNet(shrink(get_spec(name), depths=(1, 1), **overrides))


def mesh_of(shape, count=8):
    return Mesh(np.array(jax.devices()[:count]).reshape(shape), ("member", "batch"))


def inputs(model, size=18, members=(), n=16):
    """Returns a state and a batch; with `members`, both have a leading axis of that length."""
    state = create_state(model, OPTIMIZER, 0, (size, size, 3))
    state = stack_states([state] * members[0]) if members else state
    labels = np.arange(np.prod((*members, n)), dtype=np.int32).reshape((*members, n)) % 10
    return state, {"image": normal((*members, n, size, size, 3), seed=4), "label": labels}


def compiled_step(step, arguments, mesh, specs):
    """Compiles a step for a state and a batch on a mesh."""
    shapes = [
        jax.tree.map(
            lambda x, spec=spec: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=NamedSharding(mesh, spec)
            ),
            argument,
        )
        for argument, spec in zip(arguments, specs, strict=True)
    ]
    return jax.jit(step).lower(*shapes).compile(FAST)


def step_with_split_batch(model):
    """Compiles the training step of a network for eight devices, over which the batch is split."""
    with conv_backend("xla"):
        return compiled_step(
            make_train_step(model, OPTIMIZER),
            jax.eval_shape(lambda: inputs(model)),
            mesh_of((1, 8)),
            (PartitionSpec(), PartitionSpec("batch")),
        )


def collectives(compiled):
    return set(COLLECTIVE.findall(compiled.as_text()))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_step_of_every_family_needs_all_reduces_only(name):
    assert collectives(step_with_split_batch(small_model(name))) == {"all-reduce"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"ensemble": "batch", "members": 2},
        {"ensemble": "packed", "members": 2, "alpha": 2.0},
    ],  # MIMO's members see images of the whole batch, in another order
    ids=lambda fields: fields["ensemble"],
)
def test_step_of_efficient_ensembles_needs_all_reduces_only(fields):
    model = small_model("cifar_resnet8", **fields)
    assert collectives(step_with_split_batch(model)) == {"all-reduce"}


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "expected"), [((8, 1), set()), ((4, 2), {"all-reduce"})])
def test_step_of_vmapped_members_gathers_nothing(shape, expected):
    model = small_model("cifar_resnet8")
    with conv_backend("xla"):
        compiled = compiled_step(
            jax.vmap(make_train_step(model, OPTIMIZER)),
            jax.eval_shape(lambda: inputs(model, members=(8,), n=4)),
            mesh_of(shape),
            (PartitionSpec("member"), PartitionSpec("member", "batch")),
        )
    assert collectives(compiled) == expected


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["xla", *CPU_BACKENDS])
def test_step_of_grouped_convolutions_matches_one_device(backend):
    model = small_model("cifar_resnext29_8x64d")
    state, batch = inputs(model, size=8)
    step = make_train_step(model, OPTIMIZER)
    mesh = mesh_of((1, 8))
    placed = (
        jax.device_put(state, NamedSharding(mesh, PartitionSpec())),
        jax.device_put(batch, NamedSharding(mesh, PartitionSpec("batch"))),
    )
    with conv_backend(backend):
        new, metrics = jax.jit(step)(*placed)
    with conv_backend("xla"):
        expected, expected_metrics = jax.jit(step)(state, batch)
    assert_close(metrics["loss"], expected_metrics["loss"])
    jax.tree.map(assert_close, new.batch_stats, expected.batch_stats)
    jax.tree.map(assert_close, new.params, expected.params)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["xla", *CPU_BACKENDS])
def test_memory_of_grouped_convolutions_falls_with_devices(backend):
    options = {"window_strides": (1, 1), "padding": ((1, 1), (1, 1)), "feature_group_count": 4,
               "dimension_numbers": ("NHWC", "HWIO", "NHWC")}  # fmt: skip

    def loss(w, x):
        return jnp.sum(jnp.sin(conv_general_dilated(x, w, **options)))

    def temporaries(count):
        w, x = np.zeros((3, 3, 4, 16), np.float32), np.zeros((32, 16, 16, 16), np.float32)
        with conv_backend(backend):
            compiled = compiled_step(
                jax.grad(loss),
                (w, x),
                mesh_of((1, count), count),
                (PartitionSpec(), PartitionSpec("batch")),
            )
        return compiled.memory_analysis().temp_size_in_bytes

    one, two, eight = map(temporaries, (1, 2, 8))
    assert two < 0.7 * one
    assert eight < 0.3 * one
