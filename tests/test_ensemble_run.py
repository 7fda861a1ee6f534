"""A run of an ensemble: its members equal runs alone, and its files describe all of them."""

import json

import jax
import numpy as np
import pytest
from helpers.modules import NormNet

from resflax import UserError
from resflax.data import load_dataset
from resflax.run.checkpoint import latest_valid_metadata
from resflax.run.curves import draw_curves
from resflax.run.progress import RunProgress
from resflax.train import Trainer, Workdir, build, default_config, loop
from resflax.train.config import to_json_dict
from resflax.train.ensemble import member_config

DIGITS = load_dataset("digits")
LISTS = {
    "learning_rate": (0.005, 0.01, 0.02),
    "weight_decay": (0.0, 1e-4, 1e-3),
    "label_smoothing": (0.0, 0.1, 0.05),
    "mixup": (0.0, 0.2, 0.4),
    "drop_path": (0.1, 0.0, 0.2),
}


def make_config(size=3, **keys):
    config = default_config()
    config.model, config.batch_size, config.epochs = "cifar_resnet8", 32, 2
    config.warmup_epochs, config.data.pad_crop, config.ensemble.size = 0.2, 1, size
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in keys.items()})
    return config


def initial_params_and_losses(config, steps):
    """Returns the initial parameters, and the losses of each step."""
    run = build(config, dataset=DIGITS)
    trainer, initial = Trainer(run), run.init()
    state, losses = run.engine.put_state(initial), []
    step_fn = trainer.make_step_fn(0)
    for _ in range(steps):
        state, metrics = step_fn(state)
        losses.append(run.engine.to_host(metrics)["loss"])
    return jax.device_get(initial.params), np.array(losses)


@pytest.mark.slow
def test_members_equal_the_runs_alone():
    config = make_config(**{f"ensemble__{name}": values for name, values in LISTS.items()})
    stacked, losses = initial_params_and_losses(config, 50)
    for k in range(3):
        params, expected = initial_params_and_losses(member_config(config, k), 50)
        jax.tree.map(lambda x, y, k=k: np.testing.assert_array_equal(x[k], y), stacked, params)
        np.testing.assert_allclose(losses[:, k], expected, rtol=1e-4)
    assert len(np.unique(losses[-1])) == 3


def fit(path, **keys):
    """Trains two tiny members for an epoch; returns the results and the printed lines."""
    config = make_config(size=2, epochs=1, batch_size=64, **keys)
    lines = []
    progress = RunProgress(1, silent=True)
    progress.print = lines.append
    with Workdir.open(path, to_json_dict(config)) as workdir:
        trainer = Trainer(build(config, model=NormNet(), dataset=DIGITS))
        return loop.fit(trainer, workdir, progress), lines


def read_records(path, split):
    records = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if record["split"] == split]


def test_results_and_records_describe_all_members(tmp_path):
    results, _ = fit(tmp_path, ensemble__seeds=(7, 3))
    members, ensemble = results["members"], results["ensemble"]
    assert [member["seed"] for member in members] == [7, 3]
    assert results["test_accuracy"] == ensemble["accuracy"]
    assert results["test_loss"] == ensemble["nll"] < np.mean([m["nll"] for m in members])
    assert {"brier", "ece", "mutual_information"} <= ensemble.keys()
    assert json.loads((tmp_path / "results.json").read_text()) == results
    [test] = read_records(tmp_path, "test")
    assert test["members"]["accuracy"] == [member["accuracy"] for member in members]
    assert test["members"]["loss"] == [member["nll"] for member in members]
    for record in read_records(tmp_path, "train"):
        assert record["loss"] == pytest.approx(np.mean(record["members"]["loss"]))
    metadata = latest_valid_metadata(tmp_path / "checkpoints")
    assert metadata["ensemble"] == {"size": 2, "seeds": [7, 3], "dropped": []}
    assert (tmp_path / "curves.png").stat().st_size > 0


# In the first step of the second member the update overflows: it keeps its initial parameters.
OVERFLOW = {
    "ensemble__learning_rate": (0.1, 1e38),
    "ensemble__weight_decay": (0.0, 1e9),
    "warmup_epochs": 0.0,
}


def test_diverged_member_is_reported_once_and_left_out(tmp_path):
    results, lines = fit(tmp_path, **OVERFLOW)
    good, bad = results["members"]
    assert (good["seed"], bad["seed"]) == (0, 1)
    assert bad["diverged_at"] == 1
    assert "diverged_at" not in good
    assert results["test_accuracy"] == good["accuracy"] > bad["accuracy"]
    assert results["ensemble"]["nll"] == pytest.approx(good["nll"])
    [warning] = [line for line in lines if line.startswith("warning")]
    assert warning.startswith("warning: member 1 (seed 1), step 1, learning rate 1e+38, not finite")
    assert warning.endswith("it is left out, the others continue")
    assert latest_valid_metadata(tmp_path / "checkpoints")["ensemble"]["dropped"] == [1]
    for record in read_records(tmp_path, "train"):
        assert record["members"]["loss"] == [record["loss"], None]


def test_frozen_member_stays_in_the_ensemble(tmp_path):
    results, lines = fit(tmp_path, ensemble__on_diverged="freeze", **OVERFLOW)
    good, bad = results["members"]
    assert bad["diverged_at"] == 1
    assert results["ensemble"]["nll"] > good["nll"]
    assert any("it keeps its last finite state" in line for line in lines)
    assert latest_valid_metadata(tmp_path / "checkpoints")["ensemble"]["dropped"] == []


def test_skipped_updates_are_counted_by_member(tmp_path):
    keys = {"on_nonfinite": "skip", "max_consecutive_nonfinite": 3, **OVERFLOW}
    results, _ = fit(tmp_path, **keys)
    assert results["dropped_steps"] == 3
    assert [member.get("diverged_at") for member in results["members"]] == [None, 3]


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        (OVERFLOW | {"ensemble__on_diverged": "stop"}, r"member 1 \(seed 1\), step 1, learning"),
        (
            OVERFLOW
            | {"ensemble__learning_rate": (1e38, 2e38), "ensemble__weight_decay": (1e9, 2e9)},
            r"member 1 \(seed 1\), step 1,",
        ),
    ],
)
def test_run_ends_with_its_last_member_or_on_request(keys, match, tmp_path):
    with pytest.raises(UserError, match=match):
        fit(tmp_path, **keys)
    assert not (tmp_path / "results.json").exists()


def test_member_without_finite_outputs_is_left_out(tmp_path):
    """Its parameters are finite, but so large that its logits are not."""
    results, _ = fit(tmp_path, ensemble__learning_rate=(0.1, 1e30), ensemble__on_diverged="freeze")
    assert results["members"][1]["nll"] is None
    assert results["members"][1]["accuracy"] == 0
    assert np.isfinite(results["ensemble"]["nll"])


def test_member_without_finite_outputs_no_longer_trains(tmp_path):
    config = make_config(size=2, epochs=2, batch_size=64, ensemble__on_diverged="freeze")
    trainer, states, lines = Trainer(build(config, model=NormNet(), dataset=DIGITS)), [], []
    trainer.eval_state = lambda state: states.append(jax.device_get(state)) or state
    evaluate = trainer.evaluate

    def evaluate_as_not_finite(*args):
        test = evaluate(*args)
        test["members"]["loss"][1] = None
        return test

    trainer.evaluate = evaluate_as_not_finite
    progress = RunProgress(1, silent=True)
    progress.print = lines.append
    with Workdir.open(tmp_path, to_json_dict(config)) as workdir:
        results = loop.fit(trainer, workdir, progress)
    first, last = states
    kernels = [state.params["head"]["kernel"] for state in states]
    np.testing.assert_array_equal(kernels[0][1], kernels[1][1])
    assert (kernels[0][0] != kernels[1][0]).any()
    assert last.member["diverged_at"].tolist() == [0, int(first.step[0])]
    assert results["members"][1]["diverged_at"] == int(first.step[0])
    assert latest_valid_metadata(tmp_path / "checkpoints")["ensemble"]["dropped"] == [1]
    [warning] = [line for line in lines if line.startswith("warning")]
    assert "test loss is nan at step" in warning
    assert warning.endswith("it is left out, the others continue")


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        ([], ["members, test", "members' mean, train", "ensemble, test"]),
        (["a", "b"], ["a, test", "b, test", "members' mean, train", "ensemble, test"]),
        (["a", "b"] * 4, ["members, test", "members' mean, train", "ensemble, test"]),
    ],
)
def test_curves_name_the_lines_of_an_ensemble(names, labels, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(
        "resflax.run.curves.save", lambda figure, path, title: figures.append(figure)
    )
    values = {"loss": [2.2, 2.3] * 4, "accuracy": [0.2, 0.3] * 4}
    members = {key: row[: len(names) or 2] for key, row in values.items()}
    rows = [{"split": split, "loss": 2.25, "accuracy": 0.2} for split in ("train", "test")]
    records = [row | {"step": step, "members": members} for step in (1, 2) for row in rows]
    draw_curves(records, tmp_path / "curves.png", "title", names)
    figures[0].canvas.draw()
    assert figures[0].axes[1].get_legend_handles_labels()[1] == labels
    axis = figures[0].axes[0].yaxis
    ticks = [label.get_text() for label in axis.get_ticklabels(which="both")]
    assert any(ticks)
    for tick in filter(None, ticks):
        float(tick)  # no powers of ten
