"""Stopped and resumed runs have the records, results and bits of uninterrupted ones."""

import json
import shutil

import jax
import numpy as np
import pytest
from helpers.modules import NormNet
from helpers.records import read_reproducible

from resflax import UserError
from resflax.data import load_dataset
from resflax.run.progress import RunProgress
from resflax.run.signals import Interrupt, InterruptedRunError
from resflax.train import Trainer, Workdir, build, default_config, loop
from resflax.train.config import INCREASABLE_KEYS, RESUMABLE_KEYS, to_json_dict
from resflax.train.results import MEASURED

DIGITS = load_dataset("digits")
STEPS = 60  # two epochs of 30


def make_config(**keys):
    config = default_config()
    config.epochs, config.batch_size, config.log_every_steps = 2, 48, 7
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in keys.items()})
    return config


class InterruptAt(Interrupt):
    """SIGTERM after a step of this start, or before a batch of an evaluation; 0 for never."""

    def __init__(self, step=0, batch=0):
        self.step, self.batch, self.steps, self.batches = step, batch, 0, 0

    @property
    def received(self):
        return 15 * (0 < self.step <= self.steps or 0 < self.batch <= self.batches)


class CountingTrainer(Trainer):
    """Counts for an `InterruptAt` the steps and the evaluated batches.

    Reports the steps `nonfinite` as not finite.
    """

    def __init__(self, run, interrupt, nonfinite=()):
        super().__init__(run)
        self.interrupt, self.nonfinite = interrupt, nonfinite

    def make_step_fn(self, start):
        step_fn, step = super().make_step_fn(start), start

        def counting_step_fn(state, count):
            nonlocal step
            step += count
            self.interrupt.steps += count
            state, metrics = step_fn(state, count)
            if self.nonfinite:
                finite = jax.device_get(metrics["finite"])
                metrics |= {
                    "finite": jax.device_put(np.full_like(finite, step not in self.nonfinite))
                }
            return state, metrics

        return counting_step_fn

    def evaluate(self, state, split, before_batch=lambda: None, excluded=()):
        def count():
            self.interrupt.batches += 1
            before_batch()

        return super().evaluate(state, split, count, excluded)


def open_workdir(path, config):
    return Workdir.open(
        path, to_json_dict(config), resumable=RESUMABLE_KEYS, increasable=INCREASABLE_KEYS
    )


def fit(path, config, interrupt=None, nonfinite=()):
    """Starts or resumes a run; returns its results, or None if it was interrupted."""
    interrupt = interrupt or InterruptAt()
    with open_workdir(path, config) as workdir:
        run = build(config, model=NormNet(), dataset=DIGITS)
        trainer = CountingTrainer(run, interrupt, nonfinite)
        progress = RunProgress(trainer.steps, silent=True)
        try:
            return loop.fit(trainer, workdir, progress, interrupt)
        except InterruptedRunError as e:
            error = e
    assert error.status == 143
    assert f"the same command with --workdir={path} resumes" in str(error)
    return None


CONFIGS = {
    "default": {},
    "mesh, from the host": {"parallel": "mesh", "data__placement": "host"},
    "averaged": {"ema_decay": 0.9, "precise_bn_batches": 3, "optimizer": "adamw"},
    "averaged at every third step": {
        "ema_decay": 0.9,
        "ema_every_steps": 3,
        "ema_start_step": 4,
        "ema_warmup": "power",
        "precise_bn_batches": 3,
    },
    "schedule-free": {
        "optimizer": "schedule_free_adamw",
        "schedule": "constant",
        "warmup_epochs": 0.5,
        "precise_bn_batches": 3,
    },
    "schedule-free SGD": {
        "optimizer": "schedule_free_sgd",
        "schedule": "constant",
        "precise_bn_batches": 3,
        "sam_rho": 0.1,
        "data__repeats": 2,
        "data__pad_crop": 1,
    },
    "augmented": {"data__pad_crop": 1, "data__alternating_flip": True, "grad_accum_steps": 2},
    "copies": {"data__aug_splits": 2, "data__cutout": 2, "data__flip": True},
    "sharded": {"parallel": "mesh", "mesh__fsdp": 2, "schedule": "cosine_onecycle"},
    "ensemble": {
        "ensemble__size": 2,
        "ensemble__learning_rate": (0.05, 0.1),
        "ema_decay": 0.9,
        "precise_bn_batches": 3,
        "data__pad_crop": 1,
    },
    "ensemble, from the host": {
        "ensemble__size": 2,
        "data__placement": "host",
        "data__alternating_flip": True,
        "grad_accum_steps": 2,
        "optimizer": "adamw",
    },
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Returns results, records and directory of a run without interruption, made on demand."""
    runs = {}

    def get(name):
        if name not in runs:
            path = tmp_path_factory.mktemp("run")
            runs[name] = fit(path, make_config(**CONFIGS[name])), read_reproducible(path), path
        return runs[name]

    return get


@pytest.fixture
def unfinished(uninterrupted, tmp_path):
    """A copy of the default run without its results."""
    shutil.copytree(uninterrupted("default")[2], tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    return tmp_path / "run"


def assert_same_run(results, path, uninterrupted):
    expected, records, _ = uninterrupted
    assert {k: v for k, v in results.items() if k not in MEASURED} == {
        k: v for k, v in expected.items() if k not in MEASURED
    }
    assert read_reproducible(path) == records


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_run_interrupted_four_times_is_bit_identical(name, uninterrupted, tmp_path):
    """After the first step, before a record, in an evaluation and before the last step."""
    config = make_config(**CONFIGS[name])
    for interrupt in (
        InterruptAt(step=1),
        InterruptAt(step=5),  # step 6; step 7 has a record
        InterruptAt(batch=4),  # in the evaluation at step 30
        InterruptAt(step=29),  # the resumed run evaluates, and takes all steps but the last
    ):
        assert fit(tmp_path, config, interrupt) is None
        assert not (tmp_path / "results.json").exists()
    results = fit(tmp_path, config)
    assert results["steps"] == STEPS
    assert_same_run(results, tmp_path, uninterrupted(name))


@pytest.mark.slow
def test_run_interrupted_once_is_bit_identical(uninterrupted, tmp_path):
    assert fit(tmp_path, make_config(), InterruptAt(batch=4)) is None
    assert_same_run(fit(tmp_path, make_config()), tmp_path, uninterrupted("default"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "lost", ["results", "last checkpoint", "all but the first", "part of a record"]
)
def test_lost_files_are_regenerated(lost, uninterrupted, unfinished):
    checkpoints = unfinished / "checkpoints"
    steps = sorted(int(p.name) for p in checkpoints.iterdir())
    if lost == "last checkpoint":
        shutil.rmtree(checkpoints / str(steps[-1]))
    elif lost == "all but the first":
        for step in steps[1:]:
            shutil.rmtree(checkpoints / str(step))
    elif lost == "part of a record":
        with open(unfinished / "metrics.jsonl", "a") as file:
            file.write('{"step": 61, "spl')
    assert_same_run(fit(unfinished, make_config()), unfinished, uninterrupted("default"))


@pytest.mark.slow
def test_run_resumes_with_another_engine_to_rounding(uninterrupted, tmp_path, monkeypatch):
    """The run prints that its results are not bit-identical."""
    lines = []
    monkeypatch.setattr(RunProgress, "print", lambda self, line: lines.append(line))
    assert fit(tmp_path, make_config(), InterruptAt(step=20)) is None
    results = fit(tmp_path, make_config(parallel="mesh", mesh__fsdp=4))
    expected, records, _ = uninterrupted("default")
    losses = [record["loss"] for record in read_reproducible(tmp_path)]
    np.testing.assert_allclose(losses, [record["loss"] for record in records], rtol=1e-4)
    assert results["steps"] == expected["steps"]
    assert "resuming from the checkpoint at step 20" in lines
    [warning] = [line for line in lines if "equal to rounding, not bit for bit" in line]
    assert "engine pmap" in warning


def test_more_epochs_continue_a_finished_run(uninterrupted, tmp_path):
    _, records, path = uninterrupted("default")
    shutil.copytree(path, tmp_path / "run")
    results = fit(tmp_path / "run", make_config(epochs=3))
    all_records = read_reproducible(tmp_path / "run")
    assert results["steps"] == 90
    assert all_records[: len(records)] == records
    assert [r["step"] for r in all_records if r["split"] == "test"] == [30, 60, 90]


def test_changed_records_are_reported_and_quarantined(uninterrupted, unfinished, monkeypatch):
    results, records, _ = uninterrupted("default")
    file = unfinished / "metrics.jsonl"
    changed = file.read_text().replace('"loss": ', '"lost": ', 1)
    file.write_text(changed)
    lines = []
    monkeypatch.setattr(RunProgress, "print", lambda self, line: lines.append(line))
    resumed = fit(unfinished, make_config())
    assert resumed["params_sha256"] == results["params_sha256"]
    assert read_reproducible(unfinished) == records[1:]
    [warning] = [line for line in lines if line.startswith("warning: ")]
    assert "metrics.jsonl has changed since step 60: 11 of its 12 records can be read" in warning
    assert (unfinished / "damaged" / "metrics.jsonl").read_text() == changed


def test_corrupt_config_is_replaced_by_that_of_the_checkpoint(uninterrupted, unfinished):
    results, records, path = uninterrupted("default")
    (unfinished / "config.json").write_text('{"model": "cif')
    with pytest.raises(UserError, match="another config .*now 99"):
        open_workdir(unfinished, make_config(seed=99))
    with open_workdir(unfinished, make_config()) as workdir:
        [note] = workdir.notes
    assert note == "warning: config.json is corrupt: using the copy in the checkpoint"
    assert (unfinished / "config.json").read_text() == (path / "config.json").read_text()
    assert fit(unfinished, make_config())["params_sha256"] == results["params_sha256"]
    assert read_reproducible(unfinished) == records


def test_fewer_steps_than_the_checkpoint_raise_user_error(unfinished):
    """The config of the workdir was changed by hand."""
    config = make_config(epochs=1)
    (unfinished / "config.json").write_text(json.dumps(to_json_dict(config)))
    with pytest.raises(UserError, match="checkpoint is at step 60, but the run has 30 steps"):
        fit(unfinished, config)


@pytest.mark.slow
def test_skipped_steps_are_counted_and_excluded_from_means(tmp_path):
    """Steps 3 and 9 to 15 are not finite; the run is interrupted at step 11."""
    nonfinite = {3, *range(9, 16)}
    config = make_config(on_nonfinite="skip", epochs=1)
    assert fit(tmp_path, config, InterruptAt(step=11), nonfinite) is None
    results = fit(tmp_path, config, nonfinite=nonfinite)
    assert results["dropped_steps"] == 8
    records = [record for record in read_reproducible(tmp_path) if record["split"] == "train"]
    assert [record.get("dropped", 0) for record in records] == [1, 6, 1, 0, 0]
    rates = [record["learning_rate"] for record in records]
    peak = config.learning_rate
    # A skipped update does not advance the schedule.
    expected = [
        peak * (1 + np.cos(np.pi * (step - 1 - dropped) / 30)) / 2
        for step, dropped in ((7, 1), (14, 7), (21, 8), (28, 8), (30, 8))
    ]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
