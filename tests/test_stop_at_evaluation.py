"""A run that a signal stops at an evaluation ends with the checkpoints of one that was not."""

import itertools
import json
import re
import signal
import subprocess
import sys

import pytest
from helpers.commands import run_train
from helpers.records import read_events

from resflax import UserError
from resflax.run.signals import Interrupt, InterruptedRunError
from resflax.train import default_config, fit, loop


def make_config():
    config = default_config()
    config.model, config.batch_size, config.epochs = "cifar_resnet8", 720, 3
    config.spec.depths, config.spec.widths, config.spec.stem_width = (1,), (4,), 4
    config.warmup_epochs, config.data.pad_crop = 0.0, 0
    config.ema_decay, config.precise_bn_batches, config.ensemble.size = 0.5, 1, 2
    return config


def train(path, interrupt=None):
    config = make_config()
    config.log_to, config.log_histograms_every_steps = "tensorboard", 2
    return fit(config, path, interrupt=interrupt, silent=True)


def histogram_steps(path):
    return [event.step for event in read_events(path).Histograms("params/head/kernel")]


def evaluations(path):
    """Returns what each checkpoint says of the evaluation at its step."""
    found = {}
    for folder in (path / "checkpoints").iterdir():
        if folder.name.isdigit():
            state = json.loads((folder / "metadata" / "metadata").read_text())["trainer_state"]
            found[int(folder.name)] = (state["evaluated"], state["test"], state["best"])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fraction"), [("_evaluate", 1), ("_after_call", 3)])
def test_stop_at_an_evaluation_keeps_its_result(tmp_path, monkeypatch, name, fraction):
    expected = train(tmp_path / "expected")
    at, interrupt = expected["steps"] * fraction // 3, Interrupt()
    with monkeypatch.context() as patch:
        original = getattr(loop.TrainingLoop, name)

        def stop(self, state, step):
            if step == at:
                interrupt.received = 15
            return original(self, state, step)

        patch.setattr(loop.TrainingLoop, name, stop)
        with pytest.raises(InterruptedRunError):
            train(tmp_path / "run", interrupt)
    results = train(tmp_path / "run")
    assert results["params_sha256"] == expected["params_sha256"]
    assert histogram_steps(tmp_path / "run") == histogram_steps(tmp_path / "expected") == [2, 4, 6]
    found, wanted = evaluations(tmp_path / "run"), evaluations(tmp_path / "expected")
    assert at in found
    assert found[at][0] == at
    assert all(found[step] == wanted[step] for step in {*found} & {*wanted})
    assert {*wanted} <= {*found}


# A run whose evaluations print each batch, and take a while for it.
SLOW_EVALUATION = """
import sys, time
from resflax.cli.main import entry
from resflax.train.evaluation import Evaluator

evaluate = Evaluator.__call__

def slowly(self, state, batches, excluded=()):
    def slow_batches():
        for batch in batches():
            print("evaluates a batch", flush=True)
            time.sleep(0.3)
            yield batch
    return evaluate(self, state, slow_batches, excluded)

Evaluator.__call__ = slowly
entry(["train", *sys.argv[1:]])
"""
FLAGS = [
    "--config.model=cifar_resnet8", "--config.epochs=2", "--config.batch_size=64",
    "--config.spec.depths=(1,)", "--config.spec.widths=(4,)", "--config.spec.stem_width=4",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.multiprocess
def test_sigterm_during_an_evaluation_saves_the_run(tmp_path):
    """The process gets the signal between two of the six batches of its first evaluation."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_EVALUATION, *FLAGS, f"--workdir={tmp_path}/run"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    lines = iter(process.stdout.readline, "")
    before = list(itertools.takewhile(lambda line: line != "evaluates a batch\n", lines))
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, (before, out, err)
    assert out.count("evaluates a batch") < 5
    expected = rf"stopped after step 2\d of 45, saved in {tmp_path}/run: the same command.*"
    assert re.fullmatch(expected, out.splitlines()[-1])
    assert "SIGTERM: stopping" in err
    assert "Traceback" not in err
    results = [fit_from_command(tmp_path / name) for name in ("run", "whole")]
    assert results[0] == results[1]


def fit_from_command(path):
    """Finishes a run, and returns what must not depend on where it was stopped."""
    assert run_train(*FLAGS, f"--workdir={path}") == 0
    results = json.loads((path / "results.json").read_text())
    return {key: results[key] for key in ("params_sha256", "test_accuracy", "best_step")}


def test_curves_that_cannot_be_written_are_named(tmp_path):
    """The results are written last: the next command writes both, without training again."""
    config, path, interrupt = make_config(), tmp_path / "run", Interrupt()
    config.epochs, config.ensemble.size, config.ema_decay, config.precise_bn_batches = 1, 1, 0.0, 0
    interrupt.received = 15
    with pytest.raises(InterruptedRunError):
        fit(config, path, interrupt=interrupt, silent=True)
    (path / "curves.png").mkdir()
    with pytest.raises(
        UserError, match=r"^curves\.png in workdir .*cannot be written: Is a directory"
    ) as e:
        fit(config, path, silent=True)
    assert "\n" not in str(e.value)
    assert not (path / "results.json").exists()
    (path / "curves.png").rmdir()
    results = fit(config, path, silent=True)
    assert results["steps"] == 2
    assert (path / "curves.png").stat().st_size > 0
