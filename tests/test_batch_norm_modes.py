"""Statistics of batch norm in training: global, per device, of groups, frozen."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers.conv_reference import normal
from helpers.modules import NormNet
from helpers.networks import randomized, variables_of

from resflax import UserError, create_model
from resflax.nn import BATCH_NORM_MODES, BatchNormMode
from resflax.nn.batch_norm import BatchNorm
from resflax.train import (
    build,
    create_state,
    default_config,
    make_engine,
    make_optimizer,
    make_train_step,
    recompute_batch_stats,
)
from resflax.train.finetune import build_batch_norm, freeze_patterns
from resflax.train.freeze import batch_norms, split_params

SHAPE = (12, 5, 4, 7)
TINY = {"depths": (1, 3), "widths": (4, 8), "stem_width": 4, "num_classes": 10}


def norm_variables(channels=7):
    rng = np.random.default_rng(0)
    row = lambda *range: jnp.asarray(rng.uniform(*range, channels), jnp.float32)  # noqa: E731
    return {
        "params": {"scale": row(0.5, 1.5), "bias": row(-1, 1)},
        "batch_stats": {"mean": row(-1, 1), "var": row(0.5, 2)},
    }


def images(seed=0):
    """Returns examples whose means differ."""
    return (
        0.7 + 1.5 * normal(SHAPE, seed=seed) + np.arange(12, dtype=np.float32)[:, None, None, None]
    )


def run(module, variables, x, weight):
    """Returns output, new statistics, and gradients of a weighted sum."""

    def value(params, x):
        y, new = module.apply({**variables, "params": params}, x, mutable=["batch_stats"])
        return jnp.sum(weight * jnp.sin(y)), (y, new["batch_stats"])

    gradients, (y, stats) = jax.grad(value, (0, 1), has_aux=True)(variables["params"], x)
    return y, stats, *gradients


def assert_close(a, b, tolerance=2e-5):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(
            x, y, rtol=tolerance, atol=tolerance * np.abs(y).max()
        ),
        a,
        b,
    )


@pytest.mark.parametrize("size", [1, 4, 12])
def test_groups_match_torch_on_each_group(size):
    """Outputs and gradients in float64; one group is the whole batch."""
    torch = pytest.importorskip("torch")
    x, weight, variables = images(), normal(SHAPE, seed=1), norm_variables()
    module = BatchNorm(train=True, mode=BatchNormMode("ghost", size))
    y, _, by_params, by_x = run(module, variables, x, weight)
    to_torch = lambda a: torch.tensor(np.asarray(a, np.float64), requires_grad=True)  # noqa: E731
    scale, bias = (to_torch(variables["params"][key]) for key in ("scale", "bias"))
    x64 = to_torch(x)
    parts = [
        torch.nn.functional.batch_norm(
            part.permute(0, 3, 1, 2), None, None, scale, bias, training=True, eps=1e-5
        ).permute(0, 2, 3, 1)
        for part in x64.split(size)
    ]
    expected = torch.cat(parts)
    (expected.sin() * torch.tensor(weight)).sum().backward()
    assert_close(y, expected.detach().numpy())
    assert_close(by_x, x64.grad.numpy())
    assert_close(by_params, {"scale": scale.grad.numpy(), "bias": bias.grad.numpy()})


@pytest.mark.parametrize("mode", [BatchNormMode("ghost", 3), BatchNormMode("per_device")])
def test_running_averages_are_of_the_whole_batch(mode):
    x, variables = images(), norm_variables()
    _, new = BatchNorm(train=True, mode=mode).apply(variables, x, mutable=["batch_stats"])
    wide, old = np.asarray(x, np.float64), variables["batch_stats"]
    assert_close(new["batch_stats"]["mean"], 0.9 * old["mean"] + 0.1 * wide.mean((0, 1, 2)))
    assert_close(new["batch_stats"]["var"], 0.9 * old["var"] + 0.1 * wide.var((0, 1, 2)))


def test_frozen_statistics_normalize_and_stay():
    """The scale and the bias still get gradients, those of evaluation mode."""
    x, weight, variables = images(), normal(SHAPE, seed=1), norm_variables()
    module = BatchNorm(train=True, mode=BatchNormMode("frozen"))
    y, stats, *gradients = run(module, variables, x, weight)
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])
    expected = run(BatchNorm(train=False), variables, x, weight)
    assert_close((y, *gradients), (expected[0], *expected[2:]))


@pytest.mark.parametrize("size", [5, 24])
def test_groups_that_do_not_divide_the_batch_raise_value_error(size):
    module = BatchNorm(train=True, mode=BatchNormMode("ghost", size))
    with pytest.raises(ValueError, match=f"12 examples cannot be split into groups of {size}"):
        module.apply(norm_variables(), images(), mutable=["batch_stats"])


@pytest.mark.parametrize("name", BATCH_NORM_MODES)
def test_evaluation_does_not_depend_on_the_mode(name):
    net = create_model("cifar_resnet20", **TINY)
    variables, x = randomized(variables_of(net, (1, 8, 8, 3))), normal((5, 8, 8, 3))
    expected = net.apply(variables, x, train=False)
    found = net.clone(batch_norm=BatchNormMode(name, 2)).apply(variables, x, train=False)
    np.testing.assert_array_equal(found, expected)


def train_batch(n=16):
    rng = np.random.default_rng(0)
    image = rng.standard_normal((n, 8, 8, 3)).astype(np.float32)
    image += rng.standard_normal((n, 1, 1, 1)).astype(np.float32)
    return {"image": image, "label": rng.integers(0, 10, n).astype(np.int32)}


def train(mode, engine="mesh", devices=1, steps=2, grad_accum_steps=1):
    """Returns losses and batch statistics of two steps on an engine."""
    engine = make_engine(engine, jax.devices()[:devices])
    net = create_model("cifar_resnet20", **TINY, scan=True).clone(batch_norm=mode)
    variables = randomized(variables_of(net, (1, 8, 8, 3)))
    optimizer = make_optimizer("sgd", 0.01)
    step = make_train_step(
        net, optimizer, axis_name=engine.axis_name, grad_accum_steps=grad_accum_steps
    )
    step = engine.compile_train(step)
    state = engine.put_state(create_state(net, optimizer, 0, (8, 8, 3), variables))
    losses = []
    for _ in range(steps):
        state, metrics = step(state, engine.shard_batch(train_batch()))
        losses.append(float(engine.to_host(metrics)["loss"]))
    return np.array(losses), engine.to_host(state.batch_stats)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "grad_accum_steps"),
    [(BatchNormMode("ghost", 2), 2), (BatchNormMode("ghost", 4), 1), (BatchNormMode("frozen"), 1)],
)
def test_device_count_does_not_change_groups_and_frozen(mode, grad_accum_steps):
    expected = train(mode, grad_accum_steps=grad_accum_steps)
    for engine in ("pmap", "mesh"):
        found = train(mode, engine, 4, grad_accum_steps=grad_accum_steps)
        assert_close(found, expected, 1e-4)


@pytest.mark.slow
def test_per_device_statistics_are_those_of_groups_as_large():
    found, expected = (
        train(BatchNormMode("per_device"), "pmap", 4),
        train(BatchNormMode("ghost", 4)),
    )
    assert_close(found, expected, 1e-4)
    whole = train(BatchNormMode())
    assert np.abs(found[0] - whole[0]).max() > 1e-2


class TwoNorms(nn.Module):
    """Batch norm of the input and of a hidden layer."""

    batch_norm: BatchNormMode

    @nn.compact
    def __call__(self, x, *, train):
        x = BatchNorm(train=train, mode=self.batch_norm, name="norm1")(x)
        x = nn.Dense(3, use_bias=False, name="hidden")(nn.relu(x))
        return BatchNorm(train=train, mode=self.batch_norm, name="norm2")(x)


def two_norm_variables(mode):
    net = TwoNorms(mode)
    return net, randomized(net.init(jax.random.key(0), jnp.zeros((1, 4)), train=False))


def two_norms(variables, x, first):
    """Returns the input of the second norm in float64; `first` gives the first one's moments."""
    x, norm = np.asarray(x, np.float64), variables["params"]["norm1"]
    mean, var = first(x)
    x = (x - mean) / np.sqrt(var + 1e-5) * norm["scale"] + norm["bias"]
    return np.maximum(x, 0) @ np.asarray(variables["params"]["hidden"]["kernel"], np.float64)


def test_precise_statistics_under_groups_are_of_the_population():
    """The second norm sees what the first one normalized group by group."""
    net, variables = two_norm_variables(BatchNormMode("ghost", 2))
    x = (
        np.random.default_rng(0).standard_normal((24, 4)).astype(np.float32)
        + np.arange(24)[:, None]
    )
    x = x.astype(np.float32)
    found = recompute_batch_stats(net, variables, np.split(x, 3))["batch_stats"]
    hidden = [
        two_norms(variables, part, lambda x: (x.mean(0), x.var(0))) for part in np.split(x, 12)
    ]
    for name, values in (("norm1", x.astype(np.float64)), ("norm2", np.concatenate(hidden))):
        assert_close(found[name], {"mean": values.mean(0), "var": values.var(0)}, 1e-4)


def test_precise_statistics_leave_frozen_ones_and_use_them():
    net, variables = two_norm_variables(BatchNormMode(frozen=("norm1",)))
    x = np.random.default_rng(0).standard_normal((24, 4)).astype(np.float32)
    found = recompute_batch_stats(net, variables, np.split(x, 3))["batch_stats"]
    old = variables["batch_stats"]["norm1"]
    jax.tree.map(np.testing.assert_array_equal, found["norm1"], old)
    hidden = two_norms(variables, x, lambda x: (old["mean"], old["var"]))
    assert_close(found["norm2"], {"mean": hidden.mean(0), "var": hidden.var(0)}, 1e-4)
    frozen = net.clone(batch_norm=BatchNormMode("frozen"))
    assert recompute_batch_stats(frozen, variables, []) is variables


def test_one_frozen_norm_normalizes_by_its_running_statistics():
    net, variables = two_norm_variables(BatchNormMode(frozen=("norm1",)))
    x = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    y, new = net.apply(variables, x, train=True, mutable=["batch_stats"])
    old, last = variables["batch_stats"], variables["params"]["norm2"]
    hidden = two_norms(variables, x, lambda x: (old["norm1"]["mean"], old["norm1"]["var"]))
    normalized = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5)
    assert_close(y, normalized * last["scale"] + last["bias"], 1e-4)
    jax.tree.map(np.testing.assert_array_equal, new["batch_stats"]["norm1"], old["norm1"])
    assert (new["batch_stats"]["norm2"]["mean"] != old["norm2"]["mean"]).all()


def make_config(**keys):
    config = default_config()
    config.model, config.batch_size = "cifar_resnet20", 64
    config.spec.update({"depths": (1, 3), "widths": (4, 8), "stem_width": 4})
    config.update(keys)
    return config


@pytest.mark.parametrize("scan", [False, True])
def test_freeze_batch_norm_freezes_parameters_and_statistics(scan):
    """As timm's `freeze_batch_norm_2d`."""
    run = build(make_config(freeze_batch_norm=True, scan=scan))
    shapes = variables_of(run.model, (1, 8, 8, 1))
    norms = batch_norms(shapes["batch_stats"])
    assert len(norms) == 7 if scan else 9
    assert not any(run.model.batch_norm.updates(norm) for norm in norms)
    trainable, frozen = split_params(shapes["params"], freeze_patterns(run.config, run.model))
    assert {path[-2] for path in flatten_dict(frozen)} == {"stem_norm", "norm1", "norm2"}
    assert {path[-2] for path in flatten_dict(trainable)} == {"stem_conv", "conv1", "conv2", "head"}


def test_freeze_batch_norm_adds_to_the_patterns():
    run = build(make_config(freeze_batch_norm=True, freeze=("head", "stem*")))
    trainable, _ = split_params(
        variables_of(run.model, (1, 8, 8, 1))["params"], freeze_patterns(run.config, run.model)
    )
    assert {path[-2] for path in flatten_dict(trainable)} == {"conv1", "conv2"}


@pytest.mark.parametrize(("parallel", "name"), [("pmap", "per_device"), ("mesh", "ghost")])
def test_per_device_mode_fits_the_engine(parallel, name):
    """A mesh sees the global batch: 64 examples on 8 devices, in 2 micro-batches."""
    config = make_config(batch_norm="per_device", parallel=parallel, grad_accum_steps=2)
    mode = build(config).model.batch_norm
    assert (mode.name, mode.group_size(32 if parallel == "mesh" else 4)) == (name, 4)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"batch_norm": "ghost", "ghost_batch_size": 16}, "expected a divisor of 8, the images"),
        ({"batch_norm": "gohst"}, "unknown batch_norm 'gohst'"),
        ({"freeze_batch_norm": True}, "config.freeze_batch_norm is True, but the model has no"),
        ({"batch_norm": "frozen"}, "config.batch_norm is 'frozen', but the model has no batch"),
    ],
)
def test_invalid_mode_is_one_line(keys, message):
    config = make_config(**keys)
    if "has no" in message:
        config.spec.update({"norm": "group", "widths": (32, 64), "stem_width": 32})
    with pytest.raises(UserError, match=message) as e:
        build(config)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(("devices", "text"), [(1, r"\(1 device \*"), (2, r"\(2 devices \*")])
def test_message_about_groups_counts_the_devices(devices, text):
    config = make_config(batch_norm="ghost", ghost_batch_size=48)
    with pytest.raises(UserError, match=text):
        build_batch_norm(config, create_model("cifar_resnet8"), (8, 8, 3), devices)


def test_other_module_without_field_raises_user_error():
    with pytest.raises(UserError, match="has no field batch_norm of type BatchNormMode, which bat"):
        build(make_config(batch_norm="frozen"), model=NormNet())
