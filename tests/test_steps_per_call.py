"""Several steps per call: the same bits, records, evaluations and checkpoints as one by one."""

import jax
import numpy as np
import pytest
from helpers.modules import NormNet
from helpers.records import read_records

from resflax import UserError
from resflax.data import load_dataset
from resflax.run.signals import Interrupt, InterruptedRunError
from resflax.train import Trainer, Workdir, build, check_config, default_config, loop
from resflax.train.config import to_json_dict
from resflax.train.results import MEASURED

DIGITS = load_dataset("digits")
STEPS = 60  # two epochs of 30


def make_trainer(steps_per_call, keys, devices=None):
    config = default_config()
    config.epochs, config.batch_size, config.log_every_steps = 2, 48, 7
    config.checkpoint_every_steps, config.checkpoint_every_minutes = 25, 0.0
    config.checkpoint_max_to_keep = 100
    config.steps_per_call = steps_per_call
    config.update_from_flattened_dict(keys)
    return Trainer(build(config, model=NormNet(), dataset=DIGITS, devices=devices))


def fit(trainer, path, interrupt=None):
    with Workdir.open(path, to_json_dict(trainer.config)) as workdir:
        return loop.fit(trainer, workdir, interrupt=interrupt)


def contents(path):
    """Returns the records without what was measured, and the steps of the checkpoints."""
    records = [{k: v for k, v in r.items() if k not in MEASURED} for r in read_records(path)]
    return records, sorted(int(p.name) for p in (path / "checkpoints").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        {"parallel": "mesh", "data.alternating_flip": True},
        {"ensemble.size": 2},
        {"ensemble.size": 16, "ensemble.method": "map", "on_nonfinite": "skip"},
    ],
)
def test_steps_in_one_call_equal_steps_one_by_one(tmp_path, keys):
    one, many = (fit(make_trainer(n, keys), tmp_path / str(n)) for n in (1, 20))
    assert many["params_sha256"] == one["params_sha256"]
    assert contents(tmp_path / "20") == contents(tmp_path / "1")
    assert one["steps"] == many["steps"] == STEPS


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(
    "keys",
    [
        {"parallel": "pmap"},
        {"parallel": "shard_map"},
        {"parallel": "mesh", "data.repeats": 3, "data.pad_crop": 1},
        {"optimizer": "muon", "grad_clip": 0.1, "grad_clip_mode": "agc"},
        {"optimizer": "rmsprop", "schedule": "polynomial"},
    ],
)
def test_state_after_one_call_equals_that_after_steps(keys, devices):
    states = []
    for steps_per_call in (1, 20):
        trainer = make_trainer(steps_per_call, keys, jax.devices()[:devices])
        engine, step_fn = trainer.engine, trainer.make_step_fn(0)
        state = engine.put_state(trainer.init())
        for count in [1] * 7 if steps_per_call == 1 else [4, 3]:
            state, _ = step_fn(state, count)
        states.append(engine.to_host(state))
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_calls_end_at_evaluations_and_checkpoints(tmp_path):
    trainer, counts = make_trainer(1000, {}), []
    make_step_fn = trainer.make_step_fn

    def make_counting_step_fn(start):
        step_fn = make_step_fn(start)
        return lambda state, count: (counts.append(count), step_fn(state, count))[1]

    trainer.make_step_fn = make_counting_step_fn
    fit(trainer, tmp_path)
    # The first call compiles; steps 25 and 50 are saved, 30 and 60 evaluated.
    assert counts == [1, 24, 5, 20, 10]


@pytest.mark.slow
def test_stopped_calls_resume_to_the_same_bits(tmp_path, monkeypatch):
    expected = fit(make_trainer(14, {}), tmp_path / "expected")
    after_call, interrupt = loop.TrainingLoop._after_call, Interrupt()

    def stop(self, state, step):
        if step == 44:
            interrupt.received = 15
        return after_call(self, state, step)

    with monkeypatch.context() as patch:
        patch.setattr(loop.TrainingLoop, "_after_call", stop)
        with pytest.raises(InterruptedRunError):
            fit(make_trainer(14, {}), tmp_path / "run", interrupt)
    assert 44 in contents(tmp_path / "run")[1]  # 30 and a call of 14
    results = fit(make_trainer(14, {}), tmp_path / "run")
    assert results["params_sha256"] == expected["params_sha256"]
    assert contents(tmp_path / "run")[0] == contents(tmp_path / "expected")[0]


def test_several_steps_per_call_need_data_on_devices():
    config = default_config()
    config.steps_per_call, config.data.placement = 2, "host"
    with pytest.raises(UserError, match=r"config\.steps_per_call is 2, but the training images"):
        check_config(config)


def test_streamed_data_refuse_several_steps_per_call(monkeypatch):
    monkeypatch.setattr("resflax.train.input_pipeline.MAX_DEVICE_DATASET_BYTES", 1000)
    with pytest.raises(UserError, match=r"or use config\.data\.placement=device"):
        make_trainer(2, {})
