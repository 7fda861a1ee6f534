"""`resflax.train.fit` from Python: the same run as that of the command line."""

import json
import re
from pathlib import Path

import pytest
from helpers.commands import run_train

from resflax import UserError
from resflax.run.signals import Interrupt, InterruptedRunError
from resflax.train import default_config, fit
from resflax.train.launch import default_workdir
from resflax.train.results import MEASURED

FILES = {"config.json", "metrics.jsonl", "results.json", "checkpoints", "curves.png"}


def make_config():
    """A network of one block on the digits, for 6 steps."""
    config = default_config()
    config.model, config.epochs, config.batch_size = "cifar_resnet8", 1, 240
    config.spec.update(depths=(1,), widths=(4,), stem_width=4)
    config.log_every_steps, config.warmup_epochs, config.data.pad_crop = 2, 0.5, 1
    return config


# The same on the command line, where the default recipe is configs/digits.py.
FLAGS = [
    "--config.model=cifar_resnet8", "--config.epochs=1", "--config.batch_size=240",
    "--config.spec.depths=(1,)", "--config.spec.widths=(4,)", "--config.spec.stem_width=4",
    "--config.log_every_steps=2", "--config.warmup_epochs=0.5", "--config.data.pad_crop=1",
    "--config.weight_decay=1e-4",
]  # fmt: skip


def read_json(path, *without):
    return {k: v for k, v in json.loads(path.read_text()).items() if k not in without}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The results and directory of a run from Python."""
    path = tmp_path_factory.mktemp("python") / "run"
    return fit(make_config(), path, silent=True), path


@pytest.mark.slow
def test_python_and_command_line_leave_the_same_files(run, tmp_path, capsys):
    results, path = run
    assert run_train(*FLAGS, f"--workdir={tmp_path}/run") == 0
    assert capsys.readouterr().err == ""
    from_command = tmp_path / "run"
    assert read_json(path / "results.json") == results
    assert read_json(path / "results.json", *MEASURED) == read_json(
        from_command / "results.json", *MEASURED
    )
    assert read_json(path / "config.json") == read_json(from_command / "config.json")
    for folder in (path, from_command):
        assert {p.name for p in folder.iterdir()} == FILES
    lines = [(p / "metrics.jsonl").read_text().splitlines() for p in (path, from_command)]
    for a, b in zip(*lines, strict=True):
        a, b = json.loads(a), json.loads(b)
        assert a["examples_per_second"] > 0
        assert b["examples_per_second"] > 0
        assert all(a[k] == b[k] for k in a if k not in MEASURED)
        assert a.keys() == b.keys()


def test_finished_run_returns_its_results(run, capsys):
    results, path = run
    files = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    assert fit(make_config(), str(path)) == results
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "run already finished"
    assert re.fullmatch(
        r"test accuracy [\d.]+ on 360 examples, at step 6; best.*, at step 6; waited for data in"
        rf" 0 % of the training time; saved in {path}",
        lines[1],
    )
    assert len(lines) == 2
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == files


@pytest.mark.slow
def test_resume_never_starts_in_the_next_free_workdir(run, capsys):
    results, path = run
    repeated = fit(make_config(), path, resume="never")
    out = capsys.readouterr().out
    assert "8 cpu devices; " in out
    assert " multiply-adds per example; compiling\n" in out
    assert out.endswith(f"saved in {path}-2\n")
    assert repeated["params_sha256"] == results["params_sha256"]
    assert read_json(Path(f"{path}-2") / "results.json") == repeated


def test_silent_run_prints_nothing(run, capsys):
    _, path = run
    fit(make_config(), path, silent=True)
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_interrupted_run_resumes_bit_for_bit(run, tmp_path):
    class Received(Interrupt):
        received = 15

    with pytest.raises(InterruptedRunError, match="stopped after step 1 of 6") as e:
        fit(make_config(), tmp_path, interrupt=Received(), silent=True)
    assert e.value.status == 143
    results = fit(make_config(), tmp_path, silent=True)
    assert {k: v for k, v in results.items() if k not in MEASURED} == {
        k: v for k, v in run[0].items() if k not in MEASURED
    }


def test_default_workdir_is_unused_and_under_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    first = default_workdir("digits")
    assert re.fullmatch(r"runs/digits-\d{8}-\d{6}", str(first))
    seen = set()
    for _ in range(4):
        path = default_workdir("digits")
        assert not path.exists()
        path.mkdir(parents=True)
        seen.add(path)
    assert len(seen) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "kwargs", "message"),
    [
        ({"epochs": 0}, {}, "config.epochs is 0"),
        ({"batch_size": 60}, {}, "batch_size 60 is not a multiple of the 8 devices"),
        ({}, {"resume": "sometimes"}, "unknown resume 'sometimes': expected one of auto, never"),
        ({}, {"workdir": "/dev/null/x"}, "workdir /dev/null/x cannot be written"),
    ],
)
def test_invalid_calls_raise_before_anything_is_written(change, kwargs, message, tmp_path):
    config = make_config()
    config.update(change)
    with pytest.raises(UserError, match=message):
        fit(config, **{"workdir": tmp_path / "run", **kwargs})
    assert list(tmp_path.iterdir()) == []
