"""`python -m benchmarks.steps_per_call`: its results at a tiny size, and its arguments."""

import json

import pytest

from benchmarks import steps_per_call
from benchmarks.cli import run


@pytest.mark.slow
def test_steps_per_call_are_timed_against_single_steps(tmp_path, capsys):
    path = tmp_path / "calls.json"
    arguments = ["--model=cifar_resnet8", "--size=8", "--batch=16", "--steps=4", "--rounds=2"]
    assert run([*arguments, "--calls=2,3", f"--json={path}"], steps_per_call.main) == 0
    results = json.loads(path.read_text())["results"]
    assert {count: len(ratios) for count, ratios in results["ratios"].items()} == {"2": 2, "3": 2}
    assert results["step_seconds"] > 0
    assert "a step, one per call: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--calls=1", "--calls is '1': expected numbers of steps from 2"),
        ("--calls=ten", "--calls is 'ten': expected numbers of steps from 2"),
        ("--rounds=0", "--rounds"),
        ("--json=nowhere/a.json", "--json: directory 'nowhere' does not exist"),
    ],
)
def test_invalid_arguments_are_one_line(argument, message, capsys):
    assert run([argument], steps_per_call.main) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
