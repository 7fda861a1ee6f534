"""Steps with non-finite values: detected by parameter group, and skipped without a trace."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.modules import NormNet, random_batch

from resflax import UserError
from resflax.data import load_dataset
from resflax.train import (
    Trainer,
    Workdir,
    build,
    create_state,
    default_config,
    loop,
    make_engine,
    make_optimizer,
    make_train_step,
)
from resflax.train.config import to_json_dict
from resflax.train.nonfinite import check_finite, param_group_names


def make_batch(bad=None):
    """Returns 16 examples; one pixel of the sixth is `bad`."""
    batch = random_batch(16, classes=9)
    if bad is not None:
        batch["image"][5, 0, 0, 0] = bad
    return batch


def train_two_steps(action, name="pmap", optimizer="sgd", **keys):
    """Returns an engine, a compiled step, and the state after two good steps."""
    engine = make_engine(name)
    optimizer = make_optimizer(optimizer, lambda step: 0.1 / (1 + step))
    state = engine.put_state(create_state(NormNet(), optimizer, 0, (2, 2, 1), ema=True))
    keys |= {"on_nonfinite": action, "axis_name": engine.axis_name, "ema_decay": 0.9}
    step = engine.compile_train(make_train_step(NormNet(), optimizer, **keys))
    for _ in range(2):
        state, _ = step(state, engine.shard_batch(make_batch()))
    return engine, step, state


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(
    "bad", [np.nan, *(pytest.param(bad, marks=pytest.mark.slow) for bad in (np.inf, 3e38))]
)
@pytest.mark.parametrize("name", ["pmap", "mesh"])
def test_skipped_update_leaves_the_state_bit_for_bit(name, bad, optimizer):
    """One bad example of sixteen, on one device of eight; statistics, moments and EMA included."""
    engine, step, state = train_two_steps("skip", name, optimizer)
    before = engine.to_host(state)
    state, metrics = step(state, engine.shard_batch(make_batch(bad)))
    after, metrics = engine.to_host(state), engine.to_host(metrics)
    assert not metrics["finite"].all()
    assert (int(before.step), int(after.step)) == (2, 3)
    for part in ("params", "batch_stats", "opt_state", "ema"):
        old, new = jax.tree.leaves(getattr(before, part)), jax.tree.leaves(getattr(after, part))
        assert [x.tobytes() for x in new] == [x.tobytes() for x in old]
    state, metrics = step(state, engine.shard_batch(make_batch()))  # training continues
    assert engine.to_host(metrics)["finite"].all()
    last = engine.to_host(state)
    for part in ("params", "batch_stats", "ema"):
        pairs = zip(
            jax.tree.leaves(getattr(last, part)), jax.tree.leaves(getattr(after, part)), strict=True
        )
        assert all((x != y).any() for x, y in pairs if np.ptp(x))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_good_step_is_the_same_with_every_action(count):
    states = []
    for action in ("ignore", "stop", "skip"):
        engine, step, state = train_two_steps(action, grad_accum_steps=count)
        state, metrics = step(state, engine.shard_batch(make_batch()))
        assert ("finite" in metrics) == (action != "ignore")
        states.append(jax.tree.leaves(engine.to_host(state)))
    for other in states[1:]:
        for x, y in zip(states[0], other, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_check_finite_covers_gradients_parameters_and_statistics():
    params = {"stem_conv": {"kernel": jnp.ones(3)}, "head": {"bias": jnp.ones(2)}}
    stats = {"stage1_block1": {"norm1": {"mean": jnp.ones(2), "var": jnp.ones(2)}}}
    names = param_group_names(params, stats)
    assert names == ["stem_conv", "stage1_block1/norm1", "head"]
    zeros = jax.tree.map(jnp.zeros_like, params)

    def check(loss=1.0, grads=zeros, params=params, stats=stats):
        return check_finite(jnp.float32(loss), grads, params, stats).tolist()

    assert check() == [True, True, True, True]
    assert check(loss=jnp.nan) == [False, True, True, True]
    bad = {**zeros, "head": {"bias": jnp.array([0.0, jnp.inf])}}
    assert check(grads=bad) == [True, True, True, False]
    bad = {**params, "stem_conv": {"kernel": jnp.array([0.0, jnp.nan, 1.0])}}
    assert check(params=bad) == [True, False, True, True]
    bad = {"stage1_block1": {"norm1": {"mean": jnp.ones(2), "var": jnp.array([1.0, jnp.inf])}}}
    assert check(stats=bad) == [True, True, False, True]


def test_param_groups_are_in_the_order_of_the_network():
    names = ["stage1_block10/conv1", "stage1_block2/conv1", "stage2_block1/conv1", "head", "stem"]
    assert param_group_names({name: {"kernel": 0} for name in names}, {}) == [
        "stem", "stage1_block2/conv1", "stage1_block10/conv1", "stage2_block1/conv1", "head",
    ]  # fmt: skip


def make_config(**keys):
    config = default_config()
    config.epochs, config.batch_size, config.log_every_steps = 1, 48, 7
    config.checkpoint_every_steps = 4
    config.momentum, config.weight_decay = 0.0, 0.0
    config.update(keys)
    return config


def spiky_schedule(*bad):
    """Returns a learning rate of 0.1, and of 1e38 at the updates `bad`."""
    return lambda step: jnp.where(jnp.isin(step, jnp.array(bad)), 1e38, 0.1)


def fit(monkeypatch, path, schedule, **keys):
    monkeypatch.setattr("resflax.train.builders.build_schedule", lambda *_, **__: schedule)
    trainer = Trainer(build(make_config(**keys), model=NormNet(), dataset=load_dataset("digits")))
    with Workdir.open(path, to_json_dict(trainer.config)) as workdir:
        return loop.fit(trainer, workdir)


@pytest.mark.slow
def test_run_stops_at_the_bad_step_and_keeps_its_checkpoint(monkeypatch, tmp_path):
    with pytest.raises(UserError) as e:
        fit(monkeypatch, tmp_path, spiky_schedule(12))
    message = str(e.value)
    # 1e38 times a gradient is still finite: the loss of the next step is not.
    assert "step 14, learning rate 0.1, not finite: the loss" in message
    assert "groups, first stem_conv" in message
    assert "the checkpoint at step 12 is intact" in message
    assert "\n" not in message
    steps = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert steps == [4, 8, 12]
    assert not (tmp_path / "results.json").exists()


@pytest.mark.slow
def test_run_that_skips_stops_at_the_configured_maximum(monkeypatch, tmp_path):
    keys = {"on_nonfinite": "skip", "max_consecutive_nonfinite": 5}
    message = "in 5 consecutive steps.*max_consecutive_nonfinite"
    with pytest.raises(UserError, match=message) as e:
        fit(monkeypatch, tmp_path, spiky_schedule(12), **keys)
    assert "step 18, learning rate" in str(e.value)


def test_unknown_actions_raise_errors():
    message = "unknown on_nonfinite 'ignore': expected one of stop, skip"
    with pytest.raises(UserError, match=message):
        build(make_config(on_nonfinite="ignore"))
    with pytest.raises(ValueError, match="on_nonfinite is 'drop'"):
        make_train_step(NormNet(), make_optimizer("sgd", lambda step: 0.1), on_nonfinite="drop")
