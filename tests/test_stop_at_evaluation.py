"""A run that a signal stops at an evaluation ends with the checkpoints of one that was not."""

import json

import pytest

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
    return fit(make_config(), path, interrupt=interrupt, silent=True)


def evaluations(path):
    """Returns what each checkpoint says of the evaluation at its step."""
    found = {}
    for folder in (path / "checkpoints").iterdir():
        if folder.name.isdigit():
            state = json.loads((folder / "metadata" / "metadata").read_text())["trainer_state"]
            found[int(folder.name)] = (state["evaluated"], state["test"], state["best"])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fraction"), [("_evaluate", 1), ("_after_step", 3)])
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
    found, wanted = evaluations(tmp_path / "run"), evaluations(tmp_path / "expected")
    assert at in found
    assert found[at][0] == at
    assert all(found[step] == wanted[step] for step in {*found} & {*wanted})
    assert {*wanted} <= {*found}
