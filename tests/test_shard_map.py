"""Steps under `jax.shard_map` compute what one device computes, with and without `check_vma`."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.modules import LinearClassifier, random_batch, softmax, weighted_batch
from helpers.networks import randomized, run
from helpers.small_specs import ONE_BLOCK
from helpers.trees import assert_trees_close, to_float64
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from resflax import create_model
from resflax.kernels import conv_backend, conv_general_dilated, cpu_conv
from resflax.nn.batch_norm import BatchNormMode
from resflax.train import (
    create_state,
    make_eval_step,
    make_optimizer,
    make_train_step,
    stack_states,
)
from resflax.train.eval_step import make_predict_step
from resflax.train.precise_bn import make_stats_step

DEVICES, ROWS, SHAPE = 4, 16, (4, 4, 1)
SPLIT, WHOLE = PartitionSpec("d"), PartitionSpec()


def make_mesh(axis_type=AxisType.Auto):
    return Mesh(np.array(jax.devices()[:DEVICES]), ("d",), axis_types=(axis_type,))


def run_split(step, state, batch, *, check_vma=True, axis_type=AxisType.Auto):
    """Returns the results of a step whose batch is split over the devices."""
    mesh = make_mesh(axis_type)
    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=(WHOLE, SPLIT), out_specs=WHOLE, check_vma=check_vma
    )
    state = jax.device_put(state, NamedSharding(mesh, WHOLE))
    return run(mapped, state, jax.device_put(batch, NamedSharding(mesh, SPLIT)))


@pytest.mark.parametrize("check_vma", [True, False])
def test_gradient_is_the_mean_in_closed_form(check_vma):
    optimizer, batch = make_optimizer("sgd", 0.5, momentum=0.0), random_batch(8)
    state = create_state(LinearClassifier(), optimizer, 0, (2, 2, 1))
    step = make_train_step(LinearClassifier(), optimizer, axis_name="d")
    new, _ = run_split(step, state, batch, check_vma=check_vma)
    x = batch["image"].reshape(8, 4).astype(np.float64)
    W = np.asarray(state.params["head"]["kernel"], np.float64)
    expected = W - 0.5 * x.T @ (softmax(x @ W) - np.eye(3)[batch["label"]]) / 8
    np.testing.assert_allclose(new.params["head"]["kernel"], expected, rtol=1e-5, atol=1e-6)


# By name: fields of the network, arguments of the step, mode of batch norm.
FAST_CASES = {
    "group": ({"norm": "group"}, {}, BatchNormMode()),
    "batch": ({}, {}, BatchNormMode()),
}
SLOW_CASES = {
    "ghost": ({}, {}, BatchNormMode("ghost", 2)),
    "frozen_norm": ({}, {}, BatchNormMode("frozen")),
    "frozen_stem": ({}, {"freeze": ("stem*",)}, BatchNormMode(frozen=("stem_norm",))),
    "micro_batches": ({}, {"grad_accum_steps": 2}, BatchNormMode()),
    "dropout": (
        {"norm": "group", "drop_path": 0.3, "dropout": 0.2},
        {"grad_accum_steps": 2},
        BatchNormMode(),
    ),
    "scan": ({"depths": (3,), "scan": True}, {"ema_decay": 0.9}, BatchNormMode()),
    "remat": (
        {"block": "bottleneck", "attention": "se", "remat": True},
        {"on_nonfinite": "skip"},
        BatchNormMode(),
    ),
    "mimo": ({"ensemble": "mimo", "members": 2}, {}, BatchNormMode()),
}
CASES = FAST_CASES | SLOW_CASES
every_mapping = pytest.mark.parametrize(
    ("check_vma", "axis_type"),
    [(True, AxisType.Auto), (True, AxisType.Explicit), (False, AxisType.Auto)],
)


def make_case(fields, options, mode):
    """Returns model, optimizer (which clips by the norm) and a random state, in float64."""
    model = create_model("cifar_resnet8", num_classes=3, dtype="float64", **ONE_BLOCK | fields)
    model = model.clone(batch_norm=mode)
    optimizer = make_optimizer("sgd", 0.1, weight_decay=1e-2, grad_clip=0.5)
    options = {"freeze": options.get("freeze", ()), "ema": "ema_decay" in options}
    shapes = jax.eval_shape(lambda: create_state(model, optimizer, 0, SHAPE).variables)
    state = create_state(model, optimizer, 0, SHAPE, randomized(shapes), **options)
    return model, optimizer, to_float64(state)


def float64_batch():
    batch = weighted_batch(ROWS, SHAPE)
    return batch | {"image": batch["image"].astype(np.float64)}


@cache
def on_one_device(name):
    """Returns the state and the metrics after a train step of a case on one device."""
    fields, options, mode = CASES[name]
    with jax.enable_x64(True):
        model, optimizer, state = make_case(fields, options, mode)
        return run(make_train_step(model, optimizer, **options), state, float64_batch())


def check_train_step(name, **mapping):
    fields, options, mode = CASES[name]
    with jax.enable_x64(True):
        model, optimizer, state = make_case(fields, options, mode)
        step = make_train_step(model, optimizer, axis_name="d", **options)
        result = run_split(step, state, float64_batch(), **mapping)
        # The loss is in float32.
        assert_trees_close(result, on_one_device(name), 1e-6)


@every_mapping
@pytest.mark.parametrize("name", FAST_CASES)
def test_train_step_equals_one_device_in_float64(name, check_vma, axis_type):
    check_train_step(name, check_vma=check_vma, axis_type=axis_type)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_CASES)
def test_every_kind_of_train_step_equals_one_device(name):
    check_train_step(name)


@every_mapping
def test_other_steps_equal_one_device_in_float64(check_vma, axis_type):
    with jax.enable_x64(True):
        model, _, state = make_case(*FAST_CASES["batch"])
        batch = float64_batch()

        def steps(axis_name):
            makes = [
                make_eval_step(model, axis_name=axis_name),
                make_predict_step(model, axis_name=axis_name),
                make_stats_step(model, normalize=lambda x: x, axis_name=axis_name),
            ]
            return lambda state, batch: [step(state, batch) for step in makes]

        expected = run(steps(None), state, batch)
        result = run_split(steps("d"), state, batch, check_vma=check_vma, axis_type=axis_type)
        assert_trees_close(result, expected, 1e-6)


@pytest.mark.slow
def test_members_equal_one_device_in_float64():
    with jax.enable_x64(True):
        model, optimizer, state = make_case(*FAST_CASES["batch"])
        other = jax.tree.map(lambda x: x * 3 // 2 if x.dtype != np.float64 else x * 1.5, state)
        states, batch = stack_states([state, other]), float64_batch()
        step = make_train_step(model, optimizer)
        expected = run(jax.vmap(step, (0, None)), states, batch)
        step = make_train_step(model, optimizer, axis_name="d")
        result = run_split(jax.vmap(step, (0, None)), states, batch)
        assert_trees_close(result, expected, 1e-6)


def test_per_device_batch_norm_is_ghost_batch_norm():
    with jax.enable_x64(True):
        fields, options, _ = FAST_CASES["batch"]
        mode = BatchNormMode("ghost", ROWS // DEVICES)
        ghost, optimizer, state = make_case(fields, options, mode)
        batch = float64_batch()
        expected = run(make_train_step(ghost, optimizer), state, batch)
        model = ghost.clone(batch_norm=BatchNormMode("per_device"))
        step = make_train_step(model, optimizer, axis_name="d")
        assert_trees_close(run_split(step, state, batch), expected, 1e-6)


@pytest.mark.parametrize("check_vma", [True, False])
def test_convolutions_in_chunks_equal_one_device(monkeypatch, backend, check_vma):
    """Gradients for kernels are summed in a loop over chunks of the batch."""
    monkeypatch.setattr(cpu_conv, "CHUNK_BYTES", 10_000)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, 8, 8, 32)).astype(np.float32)
    w = rng.standard_normal((3, 3, 32, 32)).astype(np.float32)

    def gradients(x, w):
        def loss(x, w):
            layout, padding = ("NHWC", "HWIO", "NHWC"), ((1, 1), (1, 1))
            y = conv_general_dilated(x, w, (1, 1), padding, dimension_numbers=layout)
            return jnp.sum(jnp.sin(y))

        return jax.grad(loss, (0, 1))(x, w)

    def local_gradients(x, w):
        dx, dw = gradients(x, jax.lax.pcast(w, "d", to="varying") if check_vma else w)
        return dx, jax.lax.psum(dw, "d")

    with conv_backend("xla"):
        expected = run(gradients, x, w)
    mapped = jax.shard_map(
        local_gradients,
        mesh=make_mesh(),
        in_specs=(SPLIT, WHOLE),
        out_specs=(SPLIT, WHOLE),
        check_vma=check_vma,
    )
    assert_trees_close(run(mapped, x, w), expected, 1e-5)
