"""Steps whose numbers go bad: told where, and dropped to the bit."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resflax import UserError
from resflax.data import load_dataset
from resflax.nn.batch_norm import BatchNorm
from resflax.train import (
    Progress,
    Trainer,
    Workdir,
    create_state,
    default_config,
    make_engine,
    make_optimizer,
    make_train_step,
)
from resflax.train.nonfinite import check_finite, param_group_names


class Net(nn.Module):
    """Two layers with batch norm between them."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(6, name="stem_conv")(x.reshape(len(x), -1))
        x = BatchNorm(train=train, axis_name=self.axis_name, name="stem_norm")(x)
        return nn.Dense(10, name="head")(nn.relu(x))


def batch(n=16, bad=None):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((n, 2, 2, 1)).astype(np.float32)
    if bad is not None:
        images[5, 0, 0, 0] = bad
    return {"image": images, "label": rng.integers(0, 9, n).astype(np.int32)}


def made(action, name="pmap", optimizer="sgd", **keys):
    """An engine, a compiled step, and a state that was trained for two steps."""
    engine = make_engine(name)
    optimizer = make_optimizer(optimizer, lambda step: 0.1 / (1 + step))
    state = engine.put_state(create_state(Net(), optimizer, 0, (2, 2, 1), ema=True))
    keys |= {"on_nonfinite": action, "axis_name": engine.axis_name, "ema_decay": 0.9}
    step = engine.compile_train(make_train_step(Net(), optimizer, **keys))
    for _ in range(2):
        state, _ = step(state, engine.shard_batch(batch()))
    return engine, step, state


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
@pytest.mark.parametrize("name", ["pmap", "mesh"])
def test_a_dropped_update_leaves_the_state_to_the_bit(name, bad, optimizer):
    """One bad example of sixteen, on one device of eight; statistics, moments and average too."""
    engine, step, state = made("skip", name, optimizer)
    before = engine.to_host(state)
    state, metrics = step(state, engine.shard_batch(batch(bad=bad)))
    after, metrics = engine.to_host(state), engine.to_host(metrics)
    assert not metrics["finite"].all()
    assert (int(before.step), int(after.step)) == (2, 3)
    for part in ("params", "batch_stats", "opt_state", "ema"):
        old, new = jax.tree.leaves(getattr(before, part)), jax.tree.leaves(getattr(after, part))
        assert [x.tobytes() for x in new] == [x.tobytes() for x in old]
    state, metrics = step(state, engine.shard_batch(batch()))  # and it goes on
    assert engine.to_host(metrics)["finite"].all()
    last = engine.to_host(state)
    for part in ("params", "batch_stats", "ema"):
        pairs = zip(
            jax.tree.leaves(getattr(last, part)), jax.tree.leaves(getattr(after, part)), strict=True
        )
        assert all((x != y).any() for x, y in pairs if np.ptp(x))


@pytest.mark.parametrize("count", [1, 2])
def test_a_good_step_is_that_which_nobody_looked_at(count):
    states = []
    for action in ("ignore", "stop", "skip"):
        engine, step, state = made(action, grad_accum_steps=count)
        state, metrics = step(state, engine.shard_batch(batch()))
        assert ("finite" in metrics) == (action != "ignore")
        states.append(jax.tree.leaves(engine.to_host(state)))
    for other in states[1:]:
        for x, y in zip(states[0], other, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)


def test_each_group_is_told_by_its_gradient_parameters_and_statistics():
    params = {"stem_conv": {"kernel": jnp.ones(3)}, "head": {"bias": jnp.ones(2)}}
    stats = {"stage1_block1": {"norm1": {"mean": jnp.ones(2), "var": jnp.ones(2)}}}
    names = param_group_names(params, stats)
    assert names == ["stem_conv", "stage1_block1/norm1", "head"]
    zeros = jax.tree.map(jnp.zeros_like, params)

    def told(loss=1.0, grads=zeros, params=params, stats=stats):
        return check_finite(jnp.float32(loss), grads, params, stats).tolist()

    assert told() == [True, True, True, True]
    assert told(loss=jnp.nan) == [False, True, True, True]
    bad = {**zeros, "head": {"bias": jnp.array([0.0, jnp.inf])}}
    assert told(grads=bad) == [True, True, True, False]
    bad = {**params, "stem_conv": {"kernel": jnp.array([0.0, jnp.nan, 1.0])}}
    assert told(params=bad) == [True, False, True, True]
    bad = {"stage1_block1": {"norm1": {"mean": jnp.ones(2), "var": jnp.array([1.0, jnp.inf])}}}
    assert told(stats=bad) == [True, True, False, True]


def test_blocks_are_in_the_order_of_the_network():
    names = ["stage1_block10/conv1", "stage1_block2/conv1", "stage2_block1/conv1", "head", "stem"]
    assert param_group_names({name: {"kernel": 0} for name in names}, {}) == [
        "stem", "stage1_block2/conv1", "stage1_block10/conv1", "stage2_block1/conv1", "head",
    ]  # fmt: skip


def trainer(**keys):
    config = default_config()
    config.epochs, config.batch_size, config.log_every_steps = 1, 48, 7
    config.checkpoint_every_steps = 4
    for key, value in keys.items():
        config[key] = value
    return Trainer(Net(), load_dataset("digits"), config)


class Rate:
    """A learning rate that is 0.1, and too large from some updates on."""

    def __init__(self, *bad):
        self.bad = jnp.array(bad)

    def __call__(self, step):
        return jnp.where(jnp.isin(step, self.bad), 1e38, 0.1)


def fit(monkeypatch, folder, rate, **keys):
    monkeypatch.setattr("resflax.train.trainer.schedule_from", lambda config, examples: rate)
    made = trainer(momentum=0.0, nesterov=False, weight_decay=0.0, **keys)
    return made.fit(Workdir.open(folder, made.config), Progress(made.steps, silent=True))


def test_a_run_stops_at_the_step_and_keeps_the_last_good_checkpoint(monkeypatch, tmp_path):
    with pytest.raises(UserError) as e:
        fit(monkeypatch, tmp_path, Rate(12))
    message = str(e.value)
    # 1e38 times a gradient is finite at first: the loss of the next step is not.
    assert "step 14, learning rate 0.1, not finite: the loss" in message
    assert "groups, first stem_conv" in message
    assert "the checkpoint of step 12 stands" in message
    assert "\n" not in message
    steps = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert steps == [4, 8, 12]
    assert not (tmp_path / "results.json").exists()


def test_a_run_that_skips_counts_and_stops_at_the_limit(monkeypatch, tmp_path):
    keys = {"on_nonfinite": "skip", "max_consecutive_nonfinite": 5}
    with pytest.raises(UserError, match="as in 5 steps in a row.*max_consecutive_nonfinite") as e:
        fit(monkeypatch, tmp_path, Rate(12), **keys)
    assert "step 18, learning rate" in str(e.value)


def test_unknown_actions_are_refused():
    with pytest.raises(
        UserError, match="unknown on_nonfinite 'ignore': expected one of stop, skip"
    ):
        trainer(on_nonfinite="ignore")
    with pytest.raises(ValueError, match="on_nonfinite is 'drop'"):
        make_train_step(Net(), make_optimizer("sgd", lambda step: 0.1), on_nonfinite="drop")
