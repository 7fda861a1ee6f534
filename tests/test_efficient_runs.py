"""Runs of efficient ensembles: one network whose evaluation also describes its members."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from helpers.records import read_records

from resflax.data import InMemorySplit, load_dataset
from resflax.metrics import (
    classification_metrics,
    log_mean_probability,
    log_softmax,
    mutual_information,
)
from resflax.train import Trainer, build, default_config, fit
from resflax.train.ensemble import is_ensemble

DIGITS = load_dataset("digits")
SPECS = {
    "batch": {"ensemble": "batch", "members": 2},
    "packed": {"ensemble": "packed", "members": 2, "alpha": 2.0},
    "mimo": {"ensemble": "mimo", "members": 2},
}


def make_config(kind, **keys):
    config = default_config()
    config.model, config.batch_size, config.epochs = "cifar_resnet8", 64, 1
    fields = {"depths": (1,), "widths": (4,), "stem_width": 4, **SPECS[kind]}
    config.spec.update(fields)
    config.update(keys)
    return config


def evaluate(kind, parallel, params=lambda tree: tree):
    """Evaluates a new network on the test split; returns the metrics, the run and its variables."""
    run = build(make_config(kind, parallel=parallel), dataset=DIGITS)
    state = run.init()
    state = dataclasses.replace(jax.device_get(state), params=params(state.params))
    test = Trainer(run).evaluate(run.engine.put_state(state), DIGITS.test)
    return test, run, state


@pytest.mark.parametrize(
    ("kind", "parallel"),
    [
        ("packed", "pmap"),
        ("packed", "mesh"),
        pytest.param("batch", "pmap", marks=pytest.mark.slow),
        pytest.param("mimo", "mesh", marks=pytest.mark.slow),
    ],
)
def test_evaluation_describes_the_members_of_a_network(kind, parallel):
    test, run, state = evaluate(kind, parallel)
    split: InMemorySplit = DIGITS.test
    mean, std = DIGITS.train.mean_std()
    images = (split.images.astype(np.float32) / 255 - mean) / std
    apply = jax.jit(lambda x: run.model.apply(state.variables, x, train=False, members=True))
    logits = np.asarray(apply(images.astype(np.float32)))
    assert logits.shape == (2, 360, 10)
    log_p = log_softmax(logits)
    expected = classification_metrics(log_mean_probability(log_p), split.labels)
    assert test["count"] == 360
    assert test["loss"] == test["ensemble"]["nll"] == pytest.approx(expected.nll, rel=1e-4)
    assert test["accuracy"] == pytest.approx(expected.accuracy, abs=1e-2)
    own = [classification_metrics(member, split.labels).nll for member in log_p]
    np.testing.assert_allclose(test["members"]["loss"], own, rtol=1e-4)
    information = test["ensemble"]["mutual_information"]
    assert information == pytest.approx(np.mean(mutual_information(log_p)), rel=1e-2)


def test_one_member_without_finite_outputs_makes_the_loss_nan():
    def spoil(params):
        bias = np.array(params["head"]["bias"])
        bias[0] = np.inf  # of the first member of two
        return {**params, "head": {**params["head"], "bias": bias}}

    test, *_ = evaluate("packed", "pmap", spoil)
    assert math.isnan(test["loss"])
    assert test["members"]["loss"][0] is None
    assert np.isfinite(test["members"]["loss"][1])


def test_single_network_has_no_members():
    config = make_config("packed")
    config.spec.update({"ensemble": "none", "members": 1, "alpha": 1.0})
    run = build(config, dataset=DIGITS)
    test = Trainer(run).evaluate(run.engine.put_state(run.init()), DIGITS.test)
    assert set(test) == {"loss", "accuracy", "count"}


@pytest.mark.slow
def test_results_describe_the_members_of_a_network(tmp_path, capsys):
    config = make_config("packed")
    results = fit(config, tmp_path / "run")
    out = capsys.readouterr().out
    assert "cifar_resnet8 (packed, 2 members) on digits: 1437 examples" in out
    assert not is_ensemble(config)
    assert [set(member) for member in results["members"]] == [{"accuracy", "nll"}] * 2
    assert {"accuracy", "nll", "brier", "ece", "mutual_information"} <= results["ensemble"].keys()
    assert results["test_loss"] == results["ensemble"]["nll"]
    records = read_records(tmp_path / "run")
    [test] = [record for record in records if record["split"] == "test"]
    assert test["members"]["loss"] == [member["nll"] for member in results["members"]]
