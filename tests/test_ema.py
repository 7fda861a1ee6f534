"""The average of the weights, and what a run with it evaluates and leaves behind."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resflax import UserError, create_model
from resflax.data import load_dataset, normalize, train_batches
from resflax.train import (
    Progress,
    Trainer,
    Workdir,
    checkpoint,
    create_state,
    default_config,
    make_engine,
    make_eval_step,
    make_train_step,
    recalibrate,
)


class Linear(nn.Module):
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(3)(x.reshape(len(x), -1))


def batch(n=8):
    rng = np.random.default_rng(0)
    return {
        "image": rng.standard_normal((n, 2, 2, 1)).astype(np.float32),
        "label": rng.integers(0, 3, n).astype(np.int32),
    }


@pytest.mark.parametrize("decay", [0.5, 0.9999])
def test_the_average_is_its_recurrence(decay):
    """ema <- d ema + (1 - d) w, d = min(decay, (1 + t) / (10 + t)), in float64."""
    optimizer = optax.sgd(0.5)
    state = create_state(Linear(), optimizer, 0, (2, 2, 1), ema=True)
    jax.tree.map(np.testing.assert_array_equal, state.ema, state.params)
    step = jax.jit(make_train_step(Linear(), optimizer, ema_decay=decay))
    expected = jax.tree.map(lambda w: np.asarray(w, np.float64), state.params)
    for t in range(20):
        state, _ = step(state, batch())
        d = min(decay, (1 + t) / (10 + t))
        expected = jax.tree.map(
            lambda e, w, d=d: d * e + (1 - d) * np.asarray(w, np.float64), expected, state.params
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), state.ema, expected)


def test_late_in_a_run_it_moves_by_one_minus_the_decay():
    """To the rounding of float32, although 1 - float32(0.9999) is off by 1.7e-4 of itself."""
    optimizer = optax.sgd(0.0)
    state = create_state(Linear(), optimizer, 0, (2, 2, 1), ema=True)
    state = dataclasses.replace(
        state, step=jnp.int32(10**6), ema=jax.tree.map(jnp.zeros_like, state.ema)
    )
    after, _ = jax.jit(make_train_step(Linear(), optimizer, ema_decay=0.9999))(state, batch())
    w = after.params["Dense_0"]["kernel"]
    np.testing.assert_allclose(after.ema["Dense_0"]["kernel"], 1e-4 * np.float64(w), rtol=1e-6)


def test_it_changes_nothing_else_and_is_evaluated():
    optimizer = optax.sgd(0.5)
    states = {}
    for decay in (0.0, 0.9):
        state = create_state(Linear(), optimizer, 0, (2, 2, 1), ema=decay > 0)
        step = jax.jit(make_train_step(Linear(), optimizer, ema_decay=decay))
        states[decay], _ = step(state, batch())
    assert states[0.0].ema == {}
    jax.tree.map(np.testing.assert_array_equal, states[0.0].params, states[0.9].params)
    data = batch() | {"weight": np.ones(8, np.float32)}
    found = make_eval_step(Linear())(states[0.9], data)
    bare = dataclasses.replace(states[0.9], params=states[0.9].ema, ema={})
    assert found == make_eval_step(Linear())(bare, data)
    assert found["loss"] != make_eval_step(Linear())(states[0.0], data)["loss"]


@pytest.mark.parametrize("name", ["pmap", "mesh"])
@pytest.mark.parametrize("devices", [1, 8])
def test_it_lies_in_memory_of_its_own(name, devices):
    """The engines give the state's memory up to the step, each array once."""
    engine, optimizer = make_engine(name, jax.devices()[:devices]), optax.sgd(0.5)
    step = make_train_step(Linear(), optimizer, ema_decay=0.9, axis_name=engine.axis_name)
    run = engine.compile_train(step)
    state = engine.replicate(create_state(Linear(), optimizer, 0, (2, 2, 1), ema=True))
    for _ in range(2):
        state, _ = run(state, engine.shard_batch(batch()))
    assert np.isfinite(engine.to_host(state).ema["Dense_0"]["kernel"]).all()


def config_of(**keys):
    config = default_config()
    config.model, config.epochs, config.batch_size = "cifar_resnet8", 1, 240
    config.update(keys)
    return config


def test_a_run_leaves_the_weights_and_statistics_that_it_evaluated(tmp_path):
    keys = {"ema_decay": 0.9, "precise_bn_batches": 2, "grad_accum_steps": 3, "schedule": "step"}
    model = create_model("cifar_resnet8", depths=(1,), widths=(8,), stem_width=8)
    digits, config = load_dataset("digits"), config_of(**keys)
    trainer = Trainer(model, digits, config)
    run = Workdir.open(tmp_path / "run", config)
    results = trainer.fit(run, Progress(trainer.steps))
    assert results["weights"] == "ema"
    weights = [record.get("weights") for record in run.records.all()]
    assert weights == [None] * (len(weights) - 1) + ["ema"]
    state = checkpoint.restore(run.path / "checkpoints", trainer.init())
    moments = digits.train.mean_std()

    def to_input(images):
        return normalize(images, mean=moments[0], std=moments[1])

    # As evaluated: by hand, on one device.
    data = {
        "image": digits.test.images,
        "label": digits.test.labels,
        "weight": np.ones(360, np.float32),
    }
    sums = make_eval_step(model, normalize=to_input)(state, data)
    assert float(sums["correct"]) / 360 == pytest.approx(results["test_accuracy"])
    assert float(sums["loss"]) / 360 == pytest.approx(results["test_loss"], rel=1e-4)
    # The statistics are the average's, of the first two batches as they are stored.
    plain = train_batches(digits.train, seed=0, batch_size=240, start=0, stop=2)
    images = [to_input(jnp.asarray(part["image"])) for part in plain]
    expected = recalibrate(model, {"params": state.ema, "batch_stats": state.batch_stats}, images)
    for a, b in zip(
        *map(jax.tree.leaves, (state.batch_stats, expected["batch_stats"])), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    ema_update = jax.tree.map(lambda a, b: bool((a != b).any()), state.ema, state.params)
    assert all(jax.tree.leaves(ema_update))
    assert json.loads((run.path / "results.json").read_text()) == results


def test_averaged_weights_with_the_statistics_of_others_are_refused():
    digits = load_dataset("digits")
    with pytest.raises(UserError, match="config.ema_decay is 0.9: .*--config.precise_bn_batches"):
        Trainer(create_model("cifar_resnet8"), digits, config_of(ema_decay=0.9))
    with pytest.raises(UserError, match="does not divide by 8 devices times grad_accum_steps 4"):
        Trainer(create_model("cifar_resnet8"), digits, config_of(grad_accum_steps=4))
