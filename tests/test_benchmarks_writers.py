"""`python -m benchmarks.writers`: its results at a tiny size, and its arguments."""

import json

import pytest

from benchmarks import writers
from benchmarks.cli import run


@pytest.mark.slow
def test_writers_are_timed_as_shares_of_a_step(tmp_path, capsys):
    path = tmp_path / "writers.json"
    arguments = ["--model=cifar_resnet8", "--size=8", "--batch=16", "--steps=4", "--rounds=2"]
    assert run([*arguments, "--every=2", f"--json={path}"], writers.main) == 0
    results = json.loads(path.read_text())["results"]
    assert len(results["ratios"]) == 2
    assert set(results["share"]) == {"csv", "tensorboard"}
    assert all(share > 0 for share in results["share"].values())
    assert results["histogram_steps"] > 0
    assert "a step with all writers over one without: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--writers=csv,tensorbord", "unknown config.log_to 'tensorbord'"),
        ("--rounds=0", "--rounds"),
        ("--json=nowhere/a.json", "--json: directory 'nowhere' does not exist"),
    ],
)
def test_invalid_arguments_are_one_line(argument, message, capsys):
    assert run([argument], writers.main) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
