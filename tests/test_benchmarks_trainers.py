"""`python -m benchmarks.trainers`: both trainers at a tiny size, and its arguments."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import trainers
from benchmarks.cli import run

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.multiprocess
def test_fast_recipe_runs_with_both_trainers(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # one device
    arguments = [f"--config={ROOT / 'configs' / 'cifar10_fast.py'}", "--config.epochs=1"]
    arguments += ["--config.dataset=fake:16x16x3:10:512", "--config.spec.widths=(8,8,8)"]
    arguments += ["--config.warmup_epochs=0.0", f"--out={tmp_path / 'runs'}"]
    path = tmp_path / "results.json"
    assert run([*arguments, "--seeds=2", f"--json={path}"], trainers.main) == 0
    results = json.loads(path.read_text())["results"]
    for found in results.values():
        assert len(found["test_accuracy"]) == 2
        assert all(speed > 0 for speed in found["examples_per_second"])
    assert "time per epoch, resflax over torch: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds=0"], "--seeds"),
        (["--out=."], "exists: expected a new folder"),
        (["--config.seed=3"], "--config.seed=3 is chosen for each run: leave it out"),
        (["--workdir=x"], "--workdir=x is chosen for each run: leave it out"),
        (["--json=nowhere/a.json"], "--json: directory 'nowhere' does not exist"),
    ],
)
def test_invalid_arguments_are_one_line(arguments, message, capsys):
    assert run(arguments, trainers.main) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
