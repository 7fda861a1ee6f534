"""Both engines satisfy the `Engine` protocol, and share a batch over their devices."""

import inspect
from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.modules import NormNet

from resflax import UserError
from resflax.distributed.engines import (
    ENGINES,
    MIN_SHARD_SIZE,
    Engine,
    PmapEngine,
    check_batch_size,
    environment,
)
from resflax.train import create_state, make_engine, make_eval_step, make_train_step

LAYOUTS = [
    *(("pmap", 1, 1), ("pmap", 8, 1), ("mesh", 1, 1), ("mesh", 8, 1), ("mesh", 8, 2)),
    *(("shard_map", 1, 1), ("shard_map", 8, 1)),
]


@pytest.fixture(params=LAYOUTS, ids=lambda layout: "-".join(map(str, layout)))
def engine(request):
    name, devices, fsdp = request.param
    return make_engine(name, jax.devices()[:devices], fsdp=fsdp)


def global_value(array, devices):
    """Returns the shards of a batch in the order of the devices, concatenated."""
    shards = {shard.device: np.asarray(shard.data) for shard in array.addressable_shards}
    return np.concatenate([shards[device] for device in devices])


def test_engines_have_every_member_of_the_protocol(engine):
    for name, kind in {"name": str, "devices": list, "axis_name": (str, type(None))}.items():
        assert isinstance(getattr(engine, name), kind)
    methods = [name for name in vars(Engine) if not name.startswith("_")]
    assert len(methods) == 9
    for name in methods:
        expected = inspect.signature(getattr(Engine, name)).parameters
        actual = inspect.signature(getattr(engine, name)).parameters
        assert len(actual) == len(expected) - 1, name  # without self
    assert make_engine(engine.name).name == engine.name
    assert environment(engine) == {
        "platform": "cpu",
        "devices": len(engine.devices),
        "processes": 1,
        "engine": engine.name,
        "jax": jax.__version__,
    }


TREE = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
    "special": np.array([-0.0, np.nan, np.inf, 1e-45], np.float32),
    "bfloat16": np.arange(8, dtype=np.float32).astype(jnp.bfloat16) / jnp.bfloat16(3),
    "int": np.arange(-4, 4, dtype=np.int32),
    "count": np.int32(-3),
    "seed": np.uint32(2**32 - 1),
    "scalar": np.float32(-0.0),
    "bool": np.array([True, False]),
    "large": np.arange(2 * MIN_SHARD_SIZE, dtype=np.float32).reshape(8, -1),
}


@pytest.mark.parametrize("method", ["replicate", "put_state"])
def test_to_host_inverts_replicate_and_put_state(engine, method):
    on_host = engine.to_host(getattr(engine, method)(TREE))
    assert on_host.keys() == TREE.keys()
    for name, leaf in on_host.items():
        assert isinstance(leaf, np.ndarray), name
        assert (leaf.dtype, leaf.shape) == (TREE[name].dtype, np.shape(TREE[name])), name
        assert leaf.tobytes() == TREE[name].tobytes(), name


def test_pmap_to_host_reads_one_shard():
    """The stand-in has nothing else: indexing it, or reading another shard, would fail."""
    leaf = SimpleNamespace(addressable_data={0: jnp.arange(6.0)[None]}.__getitem__)
    result = PmapEngine(jax.devices()).to_host({"a": leaf})
    np.testing.assert_array_equal(result["a"], np.arange(6.0))


def test_to_host_copy_survives_steps_that_reuse_the_memory(engine):
    step = engine.compile_train(lambda state, batch: (state + 1, {"state": state}))
    batch = engine.shard_batch(np.ones((8, 2), np.float32))
    state, _ = step(engine.put_state(np.zeros((100, 100), np.float32)), batch)
    on_host = engine.to_host(state)
    for _ in range(2):
        state, _ = step(state, batch)
    jax.block_until_ready(state)
    np.testing.assert_array_equal(on_host, np.ones((100, 100)))
    np.testing.assert_array_equal(engine.to_host(state), np.full((100, 100), 3))


def test_shard_batch_gives_contiguous_rows_to_devices(engine):
    assert engine.local_slice(16) == slice(0, 16)
    rows = np.arange(48, dtype=np.int32).reshape(16, 3)
    array = engine.shard_batch({"x": rows})["x"]
    assert len(array.addressable_shards) == len(engine.devices)
    value = global_value(array, engine.devices)
    assert value.reshape(16, 3).tobytes() == rows.tobytes()


def test_compiled_steps_reduce_over_all_devices(engine):
    """The global mean and sum of a batch; the state is replaced, in evaluation only read."""
    axis = engine.axis_name
    mean, total = (
        (partial(jax.lax.pmean, axis_name=axis), partial(jax.lax.psum, axis_name=axis))
        if axis
        else (lambda x: x, lambda x: x)
    )
    train = engine.compile_train(lambda state, batch: (state + mean(batch.mean()), {"n": state}))
    evaluate = engine.compile_eval(lambda state, batch: {"sum": state + total(batch.sum())})
    batch = engine.shard_batch(np.arange(16, dtype=np.float32))
    state, metrics = train(engine.put_state(np.float32(2)), batch)
    assert engine.to_host(state) == 2 + 7.5
    assert engine.to_host(metrics)["n"] == 2
    for _ in range(2):
        assert engine.to_host(evaluate(state, batch))["sum"] == 9.5 + 120


def test_steps_on_device_data_get_their_rows_of_the_order(engine):
    def step(state, data):
        rows = data["dataset"]["image"][data["order"]["index"][state - data["first_step"]]]
        if engine.axis_name:
            rows = jax.lax.all_gather(rows, engine.axis_name, tiled=True, to="invarying")
        return state + 1, {"image": rows}

    images = np.arange(50, dtype=np.float32) * 2
    order = np.random.default_rng(0).permutation(48).reshape(3, 16).astype(np.int32)
    data = {
        "dataset": engine.replicate({"image": images}),
        "first_step": engine.replicate(np.int32(7)),
        "order": engine.shard_index({"index": order}),
    }
    step = engine.compile_train_on_device_data(step)
    state = engine.put_state(np.int32(7))
    for k in range(3):
        state, metrics = step(state, data)
        np.testing.assert_array_equal(engine.to_host(metrics)["image"], images[order[k]])
    assert engine.to_host(state) == 10


def test_fsdp_shards_large_arrays_and_replicates_small_ones():
    engine = make_engine("mesh", fsdp=2)
    state = engine.put_state(
        {"kernel": np.zeros((3, 3, 32, 64), np.float32), "bias": np.zeros(64, np.float32),
         "odd": np.zeros((75, 75), np.float32)}
    )  # fmt: skip
    shapes = {name: leaf.addressable_shards[0].data.shape for name, leaf in state.items()}
    assert shapes == {"kernel": (3, 3, 32, 32), "bias": (64,), "odd": (75, 75)}
    step = engine.compile_train(lambda state, batch: (state, {"sum": batch.sum()}))
    new, _ = step(state, engine.shard_batch(np.ones(8, np.float32)))
    assert {n: leaf.addressable_shards[0].data.shape for n, leaf in new.items()} == shapes


@pytest.mark.parametrize("name", ENGINES)
def test_step_uses_the_mean_gradient_over_all_devices(name):
    """Logits w * x; one example per device."""

    class WeightedInput(nn.Module):
        axis_name: str | None = None

        @nn.compact
        def __call__(self, x, *, train):
            w = self.param("w", nn.initializers.ones, (2,))
            return x.reshape(len(x), -1) * w

    engine = make_engine(name)
    optimizer = optax.sgd(1.0)
    x = np.arange(16, dtype=np.float32).reshape(8, 2, 1, 1) / 10
    batch = {"image": x, "label": np.zeros(8, np.int32)}
    step = engine.compile_train(
        make_train_step(WeightedInput(), optimizer, axis_name=engine.axis_name)
    )
    state = engine.put_state(create_state(WeightedInput(), optimizer, 0, (2, 1, 1)))
    state, _ = step(state, engine.shard_batch(batch))
    z = x.reshape(8, 2).astype(np.float64)
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    gradient = ((p - [1, 0]) * z).mean(0)
    np.testing.assert_allclose(engine.to_host(state).params["w"], 1 - gradient, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_evaluation_sums_over_all_devices(name):
    model, engine = NormNet(), make_engine(name)
    state = create_state(model, optax.sgd(0.1), 0, (8, 8, 1))
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.standard_normal((16, 8, 8, 1)).astype(np.float32),
        "label": rng.integers(0, 10, 16).astype(np.int32),
        "weight": (np.arange(16) < 11).astype(np.float32),
    }
    expected = make_eval_step(model)(state, batch)
    step = engine.compile_eval(make_eval_step(model, axis_name=engine.axis_name))
    sums = engine.to_host(step(engine.put_state(state), engine.shard_batch(batch)))
    assert sums["count"] == 11
    for key, value in expected.items():
        np.testing.assert_allclose(sums[key], value, rtol=1e-5)


@pytest.mark.parametrize(
    ("batch_size", "hint"), [(50, "use 48 or 56"), (3, "use 8"), (9, "use 8 or 16")]
)
def test_batches_must_split_evenly_over_devices(batch_size, hint):
    check_batch_size(48, 8)
    message = f"batch_size {batch_size} is not a multiple of the 8 devices: {hint}"
    with pytest.raises(UserError, match=message):
        check_batch_size(batch_size, 8)


@pytest.mark.parametrize("name", ENGINES)
def test_shard_batch_rejects_unequal_parts(name):
    message = "batch_size 12 is not a multiple of the 8 devices: use 8 or 16"
    with pytest.raises(UserError, match=message):
        make_engine(name).shard_batch({"image": np.zeros((12, 4)), "label": np.zeros(12)})


@pytest.mark.parametrize(
    ("name", "fsdp", "message"),
    [
        ("pmapp", 1, "unknown parallel 'pmapp': expected one of pmap, mesh, shard_map"),
        ("pmap", 2, "config.mesh.fsdp is 2 with config.parallel='pmap': expected 'mesh'"),
        ("mesh", 3, "config.mesh.fsdp is 3: expected a divisor of the number of devices, 8"),
    ],
)
def test_invalid_engines_raise_user_errors(name, fsdp, message):
    with pytest.raises(UserError, match=message):
        make_engine(name, fsdp=fsdp)
