"""The moving average of the weights, and a run that evaluates it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.modules import LinearClassifier, random_batch, weighted_batch
from helpers.records import read_records

from resflax import UserError, create_model
from resflax.data import load_dataset, normalize, train_batches
from resflax.run.checkpoint import restore_latest
from resflax.train import (
    build,
    create_state,
    default_config,
    fit,
    make_engine,
    make_eval_step,
    make_train_step,
    recompute_batch_stats,
)
from resflax.train.averaging import EMA, EMA_WARMUPS, ema_update

TINY = {"depths": (1,), "widths": (8,), "stem_width": 8}


def init(optimizer, *, ema=True):
    return create_state(LinearClassifier(), optimizer, 0, (2, 2, 1), ema=ema)


@pytest.mark.slow
@pytest.mark.parametrize("decay", [0.5, 0.9999])
def test_average_equals_its_recurrence(decay):
    """ema <- d ema + (1 - d) w, d = min(decay, (1 + t) / (10 + t)), in float64."""
    optimizer = optax.sgd(0.5)
    state = init(optimizer)
    jax.tree.map(np.testing.assert_array_equal, state.ema, state.params)
    step = jax.jit(make_train_step(LinearClassifier(), optimizer, ema_decay=decay))
    expected = jax.tree.map(lambda w: np.asarray(w, np.float64), state.params)
    for t in range(20):
        state, _ = step(state, random_batch(8))
        d = min(decay, (1 + t) / (10 + t))
        expected = jax.tree.map(
            lambda e, w, d=d: d * e + (1 - d) * np.asarray(w, np.float64), expected, state.params
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), state.ema, expected)


def test_average_changes_by_exactly_one_minus_the_decay():
    """To the rounding of float32, although 1 - float32(0.9999) has a relative error of 1.7e-4."""
    optimizer = optax.sgd(0.0)
    state = init(optimizer)
    state = dataclasses.replace(
        state, step=jnp.int32(10**6), ema=jax.tree.map(jnp.zeros_like, state.ema)
    )
    step = jax.jit(make_train_step(LinearClassifier(), optimizer, ema_decay=0.9999))
    new, _ = step(state, random_batch(8))
    w = new.params["head"]["kernel"]
    np.testing.assert_allclose(new.ema["head"]["kernel"], 1e-4 * np.float64(w), rtol=1e-6)


@pytest.mark.parametrize(("use_warmup", "warmup"), [(True, "power"), (False, "none")])
@pytest.mark.parametrize("start", [0, 3])
def test_average_is_that_of_timms_model_ema(use_warmup, warmup, start):
    torch, ema = pytest.importorskip("torch"), pytest.importorskip("timm.utils.model_ema")
    weights = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32)
    model = torch.nn.Linear(5, 1, bias=False)
    model.weight.data = torch.from_numpy(weights[:1].copy())
    theirs = ema.ModelEmaV3(model, 0.7, use_warmup=use_warmup, update_after_step=start)
    average, ours = EMA(0.7, start_step=start, warmup=warmup), jnp.asarray(weights[0])
    for step, row in enumerate(weights[1:]):
        model.weight.data = torch.from_numpy(row[None].copy())
        theirs.update(model, step + 1)
        ours = ema_update(ours, jnp.asarray(row), average, step)
        np.testing.assert_allclose(ours, theirs.module.weight.detach()[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("warmup", EMA_WARMUPS)
def test_average_of_every_third_step_is_that_of_those_weights(warmup):
    """Steps 2, 5, 8, ...: until step 2 it is the weights, as in torchvision's warm-up."""
    weights = jnp.asarray(np.random.default_rng(0).standard_normal((12, 5)), jnp.float32)
    third, every = EMA(0.7, 3, 2, warmup), EMA(0.7, warmup=warmup)
    update = jax.jit(ema_update, static_argnums=2)
    average, expected = weights[0], weights[1]
    for step, row in enumerate(weights):
        average = update(average, row, third, step)
        if step < 2:
            np.testing.assert_array_equal(average, row)
            continue
        if (step - 2) % 3 == 0:
            expected = update(expected, row, every, (step - 2) // 3)
        np.testing.assert_allclose(average, expected, rtol=1e-6)


@pytest.mark.slow
def test_average_is_evaluated_and_does_not_affect_training():
    optimizer = optax.sgd(0.5)
    states = {}
    for decay in (0.0, 0.9):
        step = jax.jit(make_train_step(LinearClassifier(), optimizer, ema_decay=decay))
        states[decay], _ = step(init(optimizer, ema=decay > 0), random_batch(8))
    assert states[0.0].ema == {}
    jax.tree.map(np.testing.assert_array_equal, states[0.0].params, states[0.9].params)
    batch = weighted_batch(8)
    eval_step = make_eval_step(LinearClassifier())
    metrics = eval_step(states[0.9], batch)
    only_average = dataclasses.replace(states[0.9], params=states[0.9].ema, ema={})
    assert metrics == eval_step(only_average, batch)
    assert metrics["loss"] != eval_step(states[0.0], batch)["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pmap", "mesh"])
@pytest.mark.parametrize("devices", [1, 8])
def test_average_has_its_own_memory(name, devices):
    """Engines donate the memory of the state to the step, each array once."""
    engine, optimizer = make_engine(name, jax.devices()[:devices]), optax.sgd(0.5)
    step = make_train_step(LinearClassifier(), optimizer, ema_decay=0.9, axis_name=engine.axis_name)
    compiled = engine.compile_train(step)
    state = engine.put_state(init(optimizer))
    for _ in range(2):
        state, _ = compiled(state, engine.shard_batch(random_batch(8)))
    assert np.isfinite(engine.to_host(state).ema["head"]["kernel"]).all()


def make_config(**keys):
    config = default_config()
    config.model, config.epochs, config.batch_size = "cifar_resnet8", 1, 240
    config.spec.update(TINY)
    config.update(keys)
    return config


@pytest.mark.slow
def test_run_saves_the_average_and_statistics_it_evaluated(tmp_path):
    config = make_config(ema_decay=0.9, precise_bn_batches=2, grad_accum_steps=3, schedule="step")
    results = fit(config, tmp_path, silent=True)
    assert results["weights"] == "ema"
    records = read_records(tmp_path)
    weights = [record.get("weights") for record in records]
    assert weights == [None] * (len(weights) - 1) + ["ema"]
    initial = build(config).init()
    template = {"state": initial, "eval_batch_stats": initial.batch_stats}
    saved = restore_latest(tmp_path / "checkpoints", template).tree
    state = dataclasses.replace(saved["state"], batch_stats=saved["eval_batch_stats"])
    digits = load_dataset("digits")
    mean, std = digits.train.mean_std()

    def to_input(images):
        return normalize(images, mean=mean, std=std)

    # The evaluation by hand, on one device.
    model = create_model("cifar_resnet8", **TINY)
    batch = {
        "image": digits.test.images,
        "label": digits.test.labels,
        "weight": np.ones(360, np.float32),
    }
    sums = make_eval_step(model, normalize=to_input)(state, batch)
    assert float(sums["correct"]) / 360 == pytest.approx(results["test_accuracy"])
    assert float(sums["loss"]) / 360 == pytest.approx(results["test_loss"], rel=1e-4)
    # The statistics are those of the averaged weights on the first two batches, not augmented.
    batches = train_batches(digits.train, seed=0, batch_size=240, start=0, stop=2)
    images = [to_input(jnp.asarray(batch["image"])) for batch in batches]
    expected = recompute_batch_stats(model, state.eval_variables, images)["batch_stats"]
    for a, b in zip(*map(jax.tree.leaves, (state.batch_stats, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    differs = jax.tree.map(lambda a, b: bool((a != b).any()), state.ema, state.params)
    assert all(jax.tree.leaves(differs))
    assert json.loads((tmp_path / "results.json").read_text()) == results


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ema_decay": 0.9}, "config.ema_decay is 0.9: .*--config.precise_bn_batches"),
        ({"grad_accum_steps": 4}, "is not a multiple of 8 devices times grad_accum_steps 4"),
    ],
)
def test_average_without_statistics_for_it_raises_user_error(keys, message):
    with pytest.raises(UserError, match=message):
        build(make_config(**keys))
