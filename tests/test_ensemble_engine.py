"""The engine of ensembles: each member's result is that of its own step, whatever the mesh."""

import inspect
import re
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.modules import NormNet

from resflax import UserError, create_model
from resflax.distributed import Engine, EnsembleEngine
from resflax.distributed.ensemble_engine import choose_member_devices
from resflax.train import create_state, make_eval_step, make_train_step, stack_states

SIZE, ROWS, SHAPE = 8, 16, (4, 4, 1)
# Devices, how many of them are along the member axis, and the method.
LAYOUTS = [
    (1, 1, "vmap"), (1, 1, "map"), (2, 2, "vmap"), (2, 1, "vmap"), (4, 2, "vmap"), (8, 8, "vmap"),
    (8, 4, "vmap"), (8, 2, "map"), (8, 1, "vmap"),
]  # fmt: skip
OPTIMIZER = optax.sgd(0.1, momentum=0.9)


def make_engine(devices, member_devices, method):
    return EnsembleEngine(
        jax.devices()[:devices], SIZE, member_devices=member_devices, method=method
    )


@pytest.fixture(params=[(1, 1, "vmap"), (8, 8, "vmap"), (8, 2, "map")])
def engine(request):
    return make_engine(*request.param)


def make_batches(steps=3):
    """Returns batches of each member, `(members, n, ...)`, as many as there are steps."""
    rng = np.random.default_rng(0)
    return [
        {
            "image": rng.standard_normal((SIZE, ROWS, *SHAPE)).astype(np.float32),
            "label": rng.integers(0, 10, (SIZE, ROWS)).astype(np.int32),
        }
        for _ in range(steps)
    ]


def make_states(model=None):
    """Returns the initial state of each member."""
    return [create_state(model or NormNet(), OPTIMIZER, seed, SHAPE) for seed in range(SIZE)]


def stacked_on(engine):
    return engine.put_state(jax.device_get(stack_states(make_states())))


@pytest.fixture(scope="module")
def alone():
    """Returns losses `(steps, members)` and final states of members trained alone."""
    step = jax.jit(make_train_step(NormNet(), OPTIMIZER))
    states, losses = make_states(), []
    for batch in make_batches():
        parts = [jax.tree.map(lambda x, k=k: x[k], batch) for k in range(SIZE)]
        results = [step(state, part) for state, part in zip(states, parts, strict=True)]
        states = [state for state, _ in results]
        losses.append([float(metrics["loss"]) for _, metrics in results])
    return np.array(losses), stack_states(states)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_members_train_as_alone_on_any_mesh(layout, alone):
    engine = make_engine(*layout)
    step = engine.compile_train(make_train_step(NormNet(), OPTIMIZER, axis_name=engine.axis_name))
    state, losses = stacked_on(engine), []
    for batch in make_batches():
        state, metrics = step(state, engine.shard_member_batch(batch))
        losses.append(engine.to_host(metrics)["loss"])
    np.testing.assert_allclose(losses, alone[0], rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (engine.to_host(state), alone[1])), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_member_step_uses_the_mean_gradient_over_its_batch(engine):
    """Logits w * x without a norm: the gradient has a closed form, also with a shared batch."""

    class WeightedInput(nn.Module):
        axis_name: str | None = None

        @nn.compact
        def __call__(self, x, *, train):
            return x.reshape(len(x), -1) * self.param("w", nn.initializers.ones, (2,))

    x = np.arange(2 * ROWS, dtype=np.float32).reshape(ROWS, 2, 1, 1) / 10
    w = np.linspace(0.5, 2, SIZE)[:, None] * [1, -1]
    optimizer = optax.sgd(1.0)
    states = stack_states([create_state(WeightedInput(), optimizer, 0, (2, 1, 1))] * SIZE)
    states = states.replace(params={"w": w.astype(np.float32)})
    step = make_train_step(WeightedInput(), optimizer, axis_name=engine.axis_name)
    step = engine.compile_train(step)
    batch = {"image": x, "label": np.zeros(ROWS, np.int32)}
    repeated = jax.tree.map(lambda a: np.repeat(a[None], SIZE, 0), batch)
    z = x.reshape(ROWS, 2)[None].astype(np.float64) * w[:, None]
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    gradient = ((p - [1, 0]) * x.reshape(1, ROWS, 2)).mean(1)
    for on_devices in (engine.shard_batch(batch), engine.shard_member_batch(repeated)):
        state, _ = step(engine.put_state(jax.device_get(states)), on_devices)
        np.testing.assert_allclose(engine.to_host(state).params["w"], w - gradient, rtol=1e-5)


def test_member_evaluation_sums_over_the_batch(engine):
    batch = jax.tree.map(lambda x: x[0], make_batches()[0])
    batch["weight"] = (np.arange(ROWS) < 11).astype(np.float32)
    step = jax.jit(make_eval_step(NormNet()))
    expected = [step(state, batch) for state in make_states()]
    run = engine.compile_eval(make_eval_step(NormNet(), axis_name=engine.axis_name))
    sums = engine.to_host(run(stacked_on(engine), engine.shard_batch(batch)))
    for key in ("loss", "correct", "count"):
        np.testing.assert_allclose(sums[key], [part[key] for part in expected], rtol=1e-5)


def test_predictions_have_axes_of_members_and_rows(engine):
    def predict(state, batch):
        return {"logits": NormNet().apply(state.eval_variables, batch["image"], train=False)}

    batch = {"image": make_batches()[0]["image"][0]}
    result = engine.compile_predict(predict)(stacked_on(engine), engine.shard_batch(batch))
    expected = [jax.jit(predict)(state, batch)["logits"] for state in make_states()]
    np.testing.assert_allclose(
        engine.to_host(result)["logits"], np.stack(expected), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("shared", [True, False])
def test_members_gather_their_rows_from_device_data(engine, shared):
    def step(state, data):
        index = data["order"]["index"][state - data["first_step"]]
        total = data["dataset"][index].sum()
        return state + 1, jax.lax.psum(total, engine.axis_name) if engine.axis_name else total

    images = np.arange(50, dtype=np.float32) * 2
    order = np.random.default_rng(0).integers(0, 50, (3, SIZE, ROWS)).astype(np.int32)
    index = engine.shard_index(order[:, 0]) if shared else engine.shard_member_index(order)
    data = {
        "dataset": engine.replicate(images),
        "first_step": engine.replicate(np.int32(7)),
        "order": {"index": index},
    }
    run, state = engine.compile_train_on_device_data(step), engine.put_state(np.full(SIZE, 7))
    for k in range(3):
        state, totals = run(state, data)
        rows = np.repeat(order[k, :1], SIZE, 0) if shared else order[k]
        np.testing.assert_array_equal(engine.to_host(totals), images[rows].sum(-1))


def test_ensemble_engine_has_every_member_of_the_protocol():
    engine = EnsembleEngine(None, SIZE, member_devices=4)
    assert len(engine.devices) == 8
    assert (engine.name, engine.batch_devices, engine.axis_name) == (
        "ensemble 4x2 vmap",
        2,
        "batch",
    )
    assert EnsembleEngine(None, SIZE).axis_name is None
    for name in (name for name in vars(Engine) if not name.startswith("_")):
        expected = list(inspect.signature(getattr(Engine, name)).parameters)
        assert list(inspect.signature(getattr(engine, name)).parameters) == expected[1:], name


def test_states_are_split_over_the_member_axis_only():
    engine = EnsembleEngine(None, SIZE, member_devices=4)
    tree = {"w": np.arange(48.0).reshape(SIZE, 6), "step": np.arange(SIZE)}
    state = engine.put_state(tree)
    assert {shard.data.shape for shard in state["w"].addressable_shards} == {(2, 6)}
    on_host = engine.to_host(state)
    for name, leaf in tree.items():
        np.testing.assert_array_equal(on_host[name], leaf)


def test_training_reuses_the_memory_of_states():
    engine = EnsembleEngine(jax.devices()[:4], 4)
    state = engine.put_state(np.zeros((4, 100, 100), np.float32))
    batch = engine.shard_batch(np.ones(8, np.float32))
    engine.compile_eval(lambda state, batch: state + batch.sum())(state, batch)
    assert not state.is_deleted()
    new, _ = engine.compile_train(lambda state, batch: (state + 1, batch.sum()))(state, batch)
    assert state.is_deleted()
    np.testing.assert_array_equal(engine.to_host(new), np.ones((4, 100, 100)))


@pytest.mark.slow
def test_map_updates_states_without_copying_them():
    engine = make_engine(1, 1, "map")
    model = create_model("cifar_resnet8", num_classes=10)
    state = create_state(model, OPTIMIZER, 0, (8, 8, 3))
    stacked = engine.put_state(stack_states([state] * SIZE))
    batch = {"image": np.ones((SIZE, 4, 8, 8, 3), np.float32), "label": np.ones((SIZE, 4), int)}
    step = engine.compile_train(make_train_step(model, OPTIMIZER))
    text = step.lower(stacked, engine.shard_member_batch(batch)).compile().as_text()
    kernel = f"f32[{SIZE},3,3,64,64]"  # of the parameters, and of the momentum
    updates = re.findall(rf"= {re.escape(kernel)}\S* fusion\(", text)
    assert len(updates) == 2
    assert not re.search(rf"= {re.escape(kernel)}\S* copy\(", text)


@pytest.mark.parametrize(
    ("size", "devices", "expected"), [(8, 8, 8), (4, 8, 4), (6, 4, 2), (5, 8, 1), (5, 1, 1)]
)
def test_members_are_put_on_separate_devices_if_possible(size, devices, expected):
    assert choose_member_devices(jax.devices()[:devices], size) == expected


@pytest.mark.parametrize(
    ("size", "processes", "per_process", "expected"),
    [(4, 2, 2, 4), (2, 4, 2, 2), (6, 3, 2, 6), (2, 3, 2, 1), (8, 2, 8, 8)],
)
def test_each_process_gets_a_rectangle_of_the_mesh(size, processes, per_process, expected):
    devices = [SimpleNamespace(process_index=i // per_process)
               for i in range(processes * per_process)]  # fmt: skip
    assert choose_member_devices(devices, size) == expected


@pytest.mark.parametrize(
    ("size", "member_devices", "message"),
    [
        (0, 0, "config.ensemble.size is 0: expected 1 or more"),
        (6, 4, "member_devices is 4: 6 members on 8 devices need 1 or 2 .0 chooses 2"),
        (8, 3, "member_devices is 3: 8 members on 8 devices need 1 or 2 or 4 or 8"),
        (4, -1, "member_devices is -1: 4 members"),
    ],
)
def test_members_that_do_not_fit_the_devices_raise_user_errors(size, member_devices, message):
    with pytest.raises(UserError, match=message):
        EnsembleEngine(None, size, member_devices=member_devices)


def test_unknown_method_raises_user_error():
    message = "unknown config.ensemble.method 'loop': expected one of auto, vmap, map"
    with pytest.raises(UserError, match=message):
        EnsembleEngine(None, SIZE, method="loop")


def test_rows_that_do_not_split_evenly_raise_user_errors():
    engine = EnsembleEngine(None, SIZE, member_devices=2)
    message = "batch_size 6 is not a multiple of the 4 devices: use 4 or 8"
    with pytest.raises(UserError, match=message):
        engine.shard_batch(np.zeros((6, 2)))
    with pytest.raises(UserError, match=message):
        engine.shard_member_batch(jnp.zeros((SIZE, 6, 2)))
