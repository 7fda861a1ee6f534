"""A run of an ensemble: its members equal runs alone, and its files describe all of them."""

import itertools
import json

import jax
import numpy as np
import pytest
from helpers.modules import NormNet
from helpers.records import read_records

from resflax import UserError
from resflax.data import load_dataset
from resflax.run.checkpoint import latest_valid_metadata, read_subtrees
from resflax.run.curves import draw_curves
from resflax.run.manifest import verify_manifest
from resflax.run.progress import RunProgress
from resflax.train import Trainer, Workdir, build, default_config, loop
from resflax.train.config import to_json_dict
from resflax.train.ensemble import member_config
from resflax.train.monitor import DivergedError

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


def fit(path, change_test=lambda test: None, **keys):
    """Trains two tiny members for an epoch; returns the results and the printed lines.

    `change_test` changes the metrics of each evaluation.
    """
    config = make_config(size=2, **{"epochs": 1, "batch_size": 64} | keys)
    lines = []
    progress = RunProgress(1, silent=True)
    progress.print = lines.append
    with Workdir.open(path, to_json_dict(config)) as workdir:
        trainer = Trainer(build(config, model=NormNet(), dataset=DIGITS))
        evaluate = trainer.evaluate

        def evaluate_and_change(*args):
            test = evaluate(*args)
            change_test(test)
            return test

        trainer.evaluate = evaluate_and_change
        return loop.fit(trainer, workdir, progress), lines


def saved_state(path):
    """Returns the members' part of the state in the last checkpoint, and its "ensemble"."""
    folder = path / "checkpoints"
    step = max(int(entry.name) for entry in folder.iterdir())
    checksums = verify_manifest(folder / str(step))
    tree = read_subtrees(folder, step, ("state/member",), checksums)
    return tree["state/member"], latest_valid_metadata(folder)["ensemble"]


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
        (OVERFLOW | {"ensemble__on_diverged": "stop"}, r"^member 1 \(seed 1\), step 1, learning"),
        (
            OVERFLOW
            | {"ensemble__learning_rate": (1e38, 2e38), "ensemble__weight_decay": (1e9, 2e9)},
            r"^all members have diverged, the last one is member 1 \(seed 1\), step 1,",
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


def hide_member(member, evaluations):
    """Returns a change of evaluations with these numbers: the member's outputs are not finite."""
    count = itertools.count()

    def change(test):
        if next(count) in evaluations:
            test["members"]["loss"][member], test["members"]["accuracy"][member] = None, 0.0

    return change


@pytest.mark.parametrize("action", ["drop", "freeze", "stop"])
@pytest.mark.parametrize("where", ["training", "evaluation"])
def test_files_agree_on_a_diverged_member(where, action, tmp_path):
    keys = {"ensemble__on_diverged": action, "epochs": 2}
    if where == "training":
        keys, change = OVERFLOW | keys, lambda test: None
    else:
        change = hide_member(1, {0, 1})
    if action == "stop":
        expected = "step 1, learning" if where == "training" else "the test loss is nan at step 23"
        with pytest.raises(DivergedError, match=rf"^member 1 \(seed 1\), {expected}") as error:
            fit(tmp_path, change, **keys)
        assert error.value.diverged_at[0] == 0
        assert not (tmp_path / "results.json").exists()
        return
    results, lines = fit(tmp_path, change, **keys)
    good, bad = results["members"]
    dropped = action == "drop" or where == "evaluation"
    step = 1 if where == "training" else 23
    assert (bad["diverged_at"], bad["dropped"]) == (step, dropped)
    assert not {"diverged_at", "dropped"} & good.keys()
    member, metadata = saved_state(tmp_path)
    assert member["diverged_at"].tolist() == [0, step]
    assert metadata["dropped"] == [1] * dropped
    [warning] = [line for line in lines if line.startswith("warning")]
    outcome = "is left out" if dropped else "keeps its last finite state"
    assert warning.endswith(f": it {outcome}, the others continue")


def test_member_without_finite_outputs_no_longer_trains(tmp_path):
    """Also if its outputs are finite in a later evaluation, in which it is part again."""
    results, lines = fit(tmp_path, hide_member(1, {0}), epochs=3, ensemble__on_diverged="freeze")
    tests = read_records(tmp_path, "test")
    assert tests[0]["members"]["loss"][1] is None
    assert tests[1]["members"]["loss"][1] == tests[2]["members"]["loss"][1]  # the same parameters
    assert tests[1]["members"]["loss"][0] != tests[2]["members"]["loss"][0]
    member, metadata = saved_state(tmp_path)
    assert member["diverged_at"].tolist() == [0, tests[0]["step"]]
    assert metadata["dropped"] == []
    assert results["members"][1]["dropped"] is False
    mean = np.mean([member["nll"] for member in results["members"]])
    assert results["ensemble"]["nll"] < mean
    assert len([line for line in lines if line.startswith("warning")]) == 1


def test_frozen_state_without_finite_outputs_is_reported(tmp_path):
    keys = OVERFLOW | {"ensemble__on_diverged": "freeze", "epochs": 2}
    results, lines = fit(tmp_path, hide_member(1, {0, 1}), **keys)
    first, second = [line for line in lines if line.startswith("warning")]
    assert first.endswith("it keeps its last finite state, the others continue")
    assert second.endswith("with its last finite state: it is left out")
    assert results["members"][1]["dropped"] is True
    assert saved_state(tmp_path)[1]["dropped"] == [1]


def test_run_ends_if_no_member_has_finite_outputs(tmp_path):
    def hide_all(test):
        test["members"]["loss"] = [None, None]

    message = (
        r"^all members have diverged, the last one is member 1 \(seed 1\), the test loss is nan"
    )
    with pytest.raises(DivergedError, match=message) as error:
        fit(tmp_path, hide_all)
    assert error.value.diverged_at == (23, 23)
    assert not (tmp_path / "results.json").exists()


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
