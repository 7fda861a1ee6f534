"""Runs that are ended and go on: the bits, the records and the results of those that were not."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from test_nonfinite import Net

from resflax import UserError
from resflax.data import load_dataset
from resflax.run.config_diff import config_diff
from resflax.run.signals import Interrupt, InterruptedRunError
from resflax.run.trainer_state import TrainerState
from resflax.train import Progress, Trainer, Workdir, default_config

DIGITS = load_dataset("digits")
STEPS = 60  # two epochs of 30


def config_of(**keys):
    config = default_config()
    config.epochs, config.batch_size, config.log_every_steps = 2, 48, 7
    for key, value in keys.items():
        config.update_from_flattened_dict({key.replace("__", "."): value})
    return config


class AskedAt(Interrupt):
    """As if SIGTERM came at a step, or at a batch of an evaluation."""

    def __init__(self, step=0, batch=0):
        self.step, self.batch, self.steps, self.batches = step, batch, 0, 0

    @property
    def asked(self):
        return 15 * (0 < self.step <= self.steps or 0 < self.batch <= self.batches)


class Watched(Trainer):
    """Counts the steps of this start, and the batches that are evaluated."""

    def feed(self, start):
        advance = super().feed(start)

        def counted(state):
            self.interrupt.steps += 1
            return advance(state)

        return counted

    def evaluate(self, state, examples):
        between = self.between

        def count():
            self.interrupt.batches += 1
            between()

        self.between = count
        return super().evaluate(state, examples)


def start(folder, config, interrupt=None):
    """One start; the results, or None if it was ended."""
    run = Workdir.open(folder, config)
    trainer = Watched(Net(), DIGITS, config)
    trainer.interrupt = interrupt or AskedAt()
    try:
        return trainer.fit(run, Progress(trainer.steps, silent=True), trainer.interrupt)
    except InterruptedRunError as e:
        return None if e.status == 143 else e
    finally:
        run.close()  # as at the end of a process


def told(folder):
    """The lines of metrics.jsonl without their speed."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["examples_per_second"]
    return lines


RESUMABLE_KEYS = ("wall_seconds", "examples_per_second")
KINDS = {
    "plain": {},
    "mesh, from the host": {"parallel": "mesh", "data__placement": "host"},
    "averaged": {"ema_decay": 0.9, "precise_bn_batches": 3, "optimizer": "adamw"},
    "augmented": {"data__pad_crop": 1, "data__alternating_flip": True, "grad_accum_steps": 2},
    "spread": {"parallel": "mesh", "mesh__fsdp": 2, "schedule": "cosine_onecycle"},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run of each kind that was never ended, made when it is asked for."""
    made = {}

    def get(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp("whole")
            made[kind] = start(folder, config_of(**KINDS[kind])), told(folder), folder
        return made[kind]

    return get


def assert_as_whole(results, folder, whole):
    wanted, lines, _ = whole
    assert {k: v for k, v in results.items() if k not in RESUMABLE_KEYS} == {
        k: v for k, v in wanted.items() if k not in RESUMABLE_KEYS
    }
    assert told(folder) == lines


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_ended_often_ends_bit_for_bit_as_one_that_was_not(kind, whole, tmp_path):
    """At the first step, beside a record, in an evaluation, and before the last step."""
    config = config_of(**KINDS[kind])
    for interrupt in (
        AskedAt(step=1),
        AskedAt(step=5),  # the 6th: before the record of the 7th
        AskedAt(batch=4),  # the evaluation of step 30 is begun
        AskedAt(step=29),  # it is made anew, and then all but the last step
    ):
        assert start(tmp_path, config, interrupt) is None
        assert not (tmp_path / "results.json").exists()
    results = start(tmp_path, config)
    assert results["steps"] == STEPS
    assert_as_whole(results, tmp_path, whole(kind))


@pytest.mark.parametrize("lost", ["results", "last checkpoint", "all but the first", "half a line"])
def test_what_was_lost_is_made_again(lost, whole, tmp_path):
    shutil.copytree(whole("plain")[2], tmp_path / "run")
    run = tmp_path / "run"
    (run / "results.json").unlink()
    steps = sorted(int(p.name) for p in (run / "checkpoints").iterdir())
    if lost == "last checkpoint":
        shutil.rmtree(run / "checkpoints" / str(steps[-1]))
    elif lost == "all but the first":
        for step in steps[1:]:
            shutil.rmtree(run / "checkpoints" / str(step))
    elif lost == "half a line":
        with open(run / "metrics.jsonl", "a") as file:
            file.write('{"step": 61, "spl')
    assert_as_whole(start(run, config_of()), run, whole("plain"))


def test_it_goes_on_with_another_engine_to_rounding(whole, tmp_path):
    """And says that it is not to the bit."""
    assert start(tmp_path, config_of(), AskedAt(step=20)) is None
    results = start(tmp_path, config_of(parallel="mesh", mesh__fsdp=4))
    wanted, lines, _ = whole("plain")
    losses = [line["loss"] for line in told(tmp_path)]
    np.testing.assert_allclose(losses, [line["loss"] for line in lines], rtol=1e-4)
    assert results["steps"] == wanted["steps"]


def test_more_epochs_go_on_from_the_end(whole, tmp_path):
    shutil.copytree(whole("plain")[2], tmp_path / "run")
    results = start(tmp_path / "run", config_of(epochs=3))
    lines = told(tmp_path / "run")
    assert results["steps"] == 90
    assert lines[: len(whole("plain")[1])] == whole("plain")[1]
    assert [line["step"] for line in lines if line["split"] == "test"] == [30, 60, 90]


def test_the_checkpoint_says_where_it_was_and_with_which_config(whole):
    folder = whole("plain")[2] / "checkpoints" / str(STEPS) / "beside" / "metadata"
    beside = json.loads(folder.read_text())
    assert beside["config"]["batch_size"] == 48
    position = TrainerState.of(beside["position"])
    assert position.records == len(whole("plain")[1])
    assert position.where["devices"] == 8
    assert position.examples == 59 * 48  # the first step compiles: it is not timed


def test_records_that_were_changed_are_told_and_the_run_goes_on(whole, tmp_path, monkeypatch):
    results, lines, folder = whole("plain")
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    changed = (tmp_path / "run" / "metrics.jsonl").read_text().replace('"loss": ', '"lost": ', 1)
    (tmp_path / "run" / "metrics.jsonl").write_text(changed)
    said = []
    monkeypatch.setattr(Progress, "say", lambda self, line: said.append(line))
    again = start(tmp_path / "run", config_of())
    assert again["params_sha256"] == results["params_sha256"]
    assert told(tmp_path / "run") == lines[1:]
    [warning] = [line for line in said if line.startswith("warning: ")]
    assert "metrics.jsonl is not what it was at step 60: 11 of its 12 lines can be read" in warning
    assert (tmp_path / "run" / "damaged" / "metrics.jsonl").read_text() == changed


def test_a_damaged_config_is_that_of_the_checkpoint(whole, tmp_path):
    results, lines, folder = whole("plain")
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    (tmp_path / "run" / "config.json").write_text('{"model": "cif')
    other = config_of(seed=99)
    with pytest.raises(UserError, match="of another config .*now 99"):
        Workdir.open(tmp_path / "run", other)
    run = Workdir.open(tmp_path / "run", config_of())
    [note] = run.notes
    run.close()
    assert note == "warning: config.json is damaged: the checkpoint's own is taken"
    assert (tmp_path / "run" / "config.json").read_text() == (folder / "config.json").read_text()
    assert start(tmp_path / "run", config_of())["params_sha256"] == results["params_sha256"]
    assert told(tmp_path / "run") == lines


def test_dropped_steps_are_counted_and_left_out_of_means(tmp_path, monkeypatch):
    """As if the 3rd and the 9th to 15th steps had gone bad; across a stop."""
    bad = {3, *range(9, 16)}
    config = config_of(on_nonfinite="skip", epochs=1)

    class Poisoned(Watched):
        def feed(self, start):
            advance, at = super().feed(start), start

            def poisoned(state):
                nonlocal at
                at += 1
                state, metrics = advance(state)
                good = np.full_like(jax.device_get(metrics["finite"]), at not in bad)
                return state, metrics | {"finite": good}

            return poisoned

    monkeypatch.setitem(globals(), "Watched", Poisoned)
    assert start(tmp_path, config, AskedAt(step=11)) is None
    results = start(tmp_path, config)
    assert results["dropped_steps"] == 8
    trained = [line for line in told(tmp_path) if line["split"] == "train"]
    assert [line.get("dropped", 0) for line in trained] == [1, 6, 1, 0, 0]
    rates = [line["learning_rate"] for line in trained]
    peak = config.learning_rate
    # A dropped update leaves the schedule where it was.
    expected = [
        peak * (1 + np.cos(np.pi * (step - 1 - drops) / 30)) / 2
        for step, drops in ((7, 1), (14, 7), (21, 8), (28, 8), (30, 8))
    ]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


def test_means_of_a_window():
    position = TrainerState()
    position.took({"loss": 1.0, "accuracy": 0.5}, True)
    position.took({"loss": np.nan, "accuracy": 0.0}, False)
    position.took({"loss": 2.0, "accuracy": 1.0}, True)
    assert (position.dropped, position.in_row) == (1, 0)
    again = TrainerState.of(json.loads(json.dumps(position.as_dict())))
    assert again == position
    assert position.means() == {"loss": 1.5, "accuracy": 0.75, "dropped": 1}
    position.took({"loss": np.nan, "accuracy": 0.0}, False)
    assert position.means() == {"loss": None, "accuracy": None, "dropped": 1}
    assert position.window == []


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ({"epochs": 1}, {"epochs": 2}, []),
        ({"epochs": 2}, {"epochs": 1}, ["epochs 2, now 1"]),
        ({"parallel": "pmap"}, {"parallel": "mesh"}, []),
        ({"mesh.fsdp": 1, "data.num_workers": 0}, {"mesh.fsdp": 2, "data.num_workers": 9}, []),
        ({"seed": 1}, {}, ["seed 1, now None"]),
        ({"data.flip": False}, {"data.flip": True}, ["data.flip False, now True"]),
    ],
)
def test_what_may_differ(old, new, told):
    assert config_diff(old, new) == told


def test_a_position_is_all_plain_values():
    assert json.loads(json.dumps(TrainerState().as_dict())) == dataclasses.asdict(TrainerState())
