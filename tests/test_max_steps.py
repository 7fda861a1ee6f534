"""`max_steps` ends a run early, and changes nothing before."""

import jax
import numpy as np
import pytest
from helpers.modules import NormNet
from helpers.records import read_reproducible

from resflax import UserError
from resflax.data import load_dataset
from resflax.train import Trainer, Workdir, build, default_config, loop
from resflax.train.config import to_json_dict
from resflax.train.launch import MAY_DIFFER
from resflax.weights.run_history import total_steps


def fit(path, **keys):
    config = default_config()
    config.epochs, config.batch_size, config.log_every_steps = 2, 48, 5
    config.warmup_epochs = 0.5
    config.update(keys)
    dataset, devices = load_dataset("digits"), jax.devices()[:1]
    trainer = Trainer(build(config, model=NormNet(), dataset=dataset, devices=devices))
    with Workdir.open(path, to_json_dict(config), **MAY_DIFFER) as workdir:
        return loop.fit(trainer, workdir), trainer


def test_steps_before_the_end_are_those_of_the_whole_run(tmp_path):
    _, whole = fit(tmp_path / "whole")
    results, trainer = fit(tmp_path / "trial", max_steps=10)
    assert results["steps"] == trainer.steps == 10
    assert whole.steps == 60
    *steps, test = read_reproducible(tmp_path / "trial")
    assert steps == read_reproducible(tmp_path / "whole")[:2]
    assert (test["split"], test["step"]) == ("test", 10)
    rates = [run.run.schedules[0](step) for run in (trainer, whole) for step in range(10)]
    np.testing.assert_array_equal(rates[:10], rates[10:])
    assert total_steps(trainer.run.metadata) == 10


def test_trial_is_continued_to_the_end_of_the_whole_run(tmp_path):
    """To other numbers of steps, the last of them no limit; the parameters have the same bits."""
    whole, _ = fit(tmp_path / "whole")
    for max_steps, steps in ((10, 10), (25, 25), (0, 60)):
        results, _ = fit(tmp_path / "trial", max_steps=max_steps)
        assert results["steps"] == steps
    assert results["params_sha256"] == whole["params_sha256"]
    with pytest.raises(UserError, match="max_steps 0, now 10"):
        fit(tmp_path / "trial", max_steps=10)


def test_later_ends_than_that_of_the_epochs_have_no_effect():
    config = default_config()
    config.epochs, config.batch_size, config.max_steps = 1, 48, 1000
    run = build(config, model=NormNet(), dataset=load_dataset("digits"), devices=jax.devices()[:1])
    assert run.steps == 30
