"""The training loop: its records, evaluations, checkpoints, results and progress."""

import itertools
import json
import re

import numpy as np
import pytest
from helpers.modules import NormNet
from helpers.records import read_records

from resflax import UserError
from resflax.data import load_dataset
from resflax.run.progress import RunProgress
from resflax.train import Trainer, Workdir, build, default_config, loop, params_sha256
from resflax.train.config import to_json_dict

DIGITS = load_dataset("digits")
TOTAL = 60  # steps: two epochs of 30


def make_trainer(**keys):
    config = default_config()
    config.epochs, config.batch_size, config.log_every_steps = 2, 48, 7
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in keys.items()})
    return Trainer(build(config, model=NormNet(), dataset=DIGITS))


def fit(trainer, path, **kwargs):
    with Workdir.open(path, to_json_dict(trainer.config)) as workdir:
        return loop.fit(trainer, workdir, **kwargs)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trainer, its results and its directory."""
    path, trainer = tmp_path_factory.mktemp("run"), make_trainer(checkpoint_every_steps=20)
    return trainer, fit(trainer, path), path


@pytest.mark.slow
def test_loop_returns_the_results_it_writes(run):
    _, results, path = run
    assert json.loads((path / "results.json").read_text()) == results
    assert results["steps"] == TOTAL
    assert results["test_examples"] == 360
    assert results["weights"] == "params"
    assert results["parameters"] == 64 * 6 + 6 + 2 * 6 + 6 * 10 + 10
    assert (results["dropped_steps"], results["skipped_examples"]) == (0, 0)
    assert (path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_loop_records_training_and_evaluations(run):
    trainer, results, path = run
    records = read_records(path)
    train = [r["step"] for r in records if r["split"] == "train"]
    assert train == sorted({*range(7, TOTAL, 7), 30, TOTAL})
    assert [r["step"] for r in records if r["split"] == "test"] == [30, TOTAL]
    assert records[-1]["accuracy"] == results["test_accuracy"]
    assert records[-1]["loss"] == results["test_loss"]
    assert records[0]["loss"] > records[-1]["loss"]
    for record in records:
        rate = trainer.run.schedules[0](record["step"] - 1)
        assert record["learning_rate"] == pytest.approx(float(rate))


def test_loop_saves_at_intervals_and_best_evaluations(run):
    _, results, path = run
    steps = {int(p.name) for p in (path / "checkpoints").iterdir()}
    best = max((r for r in read_records(path) if r["split"] == "test"), key=lambda r: r["accuracy"])
    assert {40, TOTAL, best["step"]} <= steps
    metadata = path / "checkpoints" / str(TOTAL) / "metadata" / "metadata"
    saved = json.loads(metadata.read_text())
    assert saved["config"]["batch_size"] == 48
    assert saved["trainer_state"]["records"] == len(read_records(path))
    assert saved["trainer_state"]["environment"]["devices"] == 8
    assert saved["trainer_state"]["examples"] == 59 * 48  # the first step compiles: not timed
    assert saved["trainer_state"]["test"]["accuracy"] == results["test_accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{"parallel": "mesh"}, {"data__placement": "host"}])
def test_train_metrics_are_means_over_the_steps(keys, tmp_path):
    """Compares with the same steps in a loop without records, evaluations and checkpoints."""
    trainer = make_trainer(epochs=1, **keys)
    results = fit(trainer, tmp_path)
    step_fn, losses = trainer.make_step_fn(0), []
    state = trainer.engine.put_state(trainer.init())
    for _ in range(trainer.steps):
        state, metrics = step_fn(state)
        losses.append(float(trainer.engine.to_host(metrics)["loss"]))
    assert params_sha256(trainer.engine.to_host(state).params) == results["params_sha256"]
    train = [r for r in read_records(tmp_path) if r["split"] == "train"]
    ends = [0, *(r["step"] for r in train)]
    means = [np.mean(losses[a:b]) for a, b in itertools.pairwise(ends)]
    np.testing.assert_allclose([r["loss"] for r in train], means, rtol=1e-12)


@pytest.mark.slow
def test_loop_without_checkpoint_settings_saves_the_end(tmp_path):
    fit(make_trainer(epochs=1, checkpoint_every_minutes=0.0), tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["30"]


@pytest.mark.slow
def test_progress_prints_lines_or_nothing(tmp_path, capsys):
    trainer = make_trainer(epochs=1)
    fit(trainer, tmp_path / "a", progress=RunProgress(trainer.steps, 1, interval=1e6))
    line = r" *\d+%, epoch 1.0/1, step 30/30, \d\d:\d\d elapsed, 00:00 left: loss [\d.]+,"
    line += r" accuracy [\d.]+, [\d,]+ examples/s, test [\d.]+\n"
    assert re.fullmatch(line, capsys.readouterr().out)
    fit(trainer, tmp_path / "b", progress=RunProgress(trainer.steps, silent=True))
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_nonfinite_evaluation_stops_the_run(tmp_path, monkeypatch):
    trainer = make_trainer(epochs=1)
    metrics = {"loss": float("nan"), "accuracy": 0.1, "count": 360.0}
    monkeypatch.setattr(trainer, "evaluate", lambda *args: metrics)
    with pytest.raises(
        UserError, match="the test loss is nan at step 30, learning rate 0.000274: try"
    ):
        fit(trainer, tmp_path)
    assert not (tmp_path / "results.json").exists()
