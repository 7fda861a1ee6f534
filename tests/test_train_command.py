"""The command `train.py`: what it prints and leaves in its workdir."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import run_train
from helpers.records import read_records

ROOT = Path(__file__).parents[1]
# 48 divides neither split: 1437 = 29 * 48 + 45, 360 = 7 * 48 + 24.
FLAGS = [
    "--config.model=cifar_resnet8", "--config.epochs=1", "--config.log_every_steps=7",
    "--config.batch_size=48",
]  # fmt: skip
slow = pytest.mark.slow


def start(*flags, devices=8, cwd=None):
    """Runs `train.py` in a process and returns it."""
    command = [sys.executable, str(ROOT / "train.py"), *FLAGS, *flags]
    env = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def read_losses(path):
    return [record["loss"] for record in read_records(path)]


def file_contents(path):
    return {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run, started from another directory than the repository's."""
    cwd = tmp_path_factory.mktemp("cwd")
    return cwd / "run", start("--workdir=run", cwd=cwd)


@slow
def test_run_leaves_the_documented_files_and_results(run):
    path, _ = run
    assert {p.name for p in path.iterdir()} == {
        "config.json", "metrics.jsonl", "results.json", "checkpoints", "curves.png",
    }  # fmt: skip
    results = json.loads((path / "results.json").read_text())
    assert results["test_examples"] == 360
    assert results["train_examples"] == 1437
    assert results["steps"] == 30  # ceil(1437 / 48)
    # cifar_resnet8 with one input channel: two 3x3x16 slices fewer in the stem.
    assert results["parameters"] == 97_216 - 21_926 - 2 * 9 * 16
    assert results["device_count"] == 8
    assert results["process_count"] == 1
    assert results["platform"] == "cpu"
    assert re.fullmatch("[0-9a-f]{64}", results["params_sha256"])
    assert 0 <= results["test_accuracy"] <= 1
    assert round(results["test_accuracy"] * 360) == pytest.approx(results["test_accuracy"] * 360)
    assert results["wall_seconds"] > 0
    assert results["examples_per_second"] > 0
    assert {"test_loss", "jax_version"} <= set(results)
    config = json.loads((path / "config.json").read_text())
    assert config["model"] == "cifar_resnet8"
    assert config["batch_size"] == 48
    assert (path / "curves.png").read_bytes().startswith(b"\x89PNG")


@slow
def test_records_have_all_keys_and_are_in_order(run):
    path, _ = run
    records = read_records(path)
    for record in records:
        resources = {"host_memory_mib", "data_wait"} if record["split"] == "train" else set()
        assert set(record) == resources | {
            "step", "epoch", "split", "loss", "accuracy", "learning_rate", "examples_per_second",
        }  # fmt: skip
        assert record["epoch"] == pytest.approx(record["step"] * 48 / 1437, abs=1e-4)
    assert [r["step"] for r in records if r["split"] == "train"] == [7, 14, 21, 28, 30]
    assert [r["step"] for r in records if r["split"] == "test"] == [30]
    results = json.loads((path / "results.json").read_text())
    assert records[-1]["accuracy"] == results["test_accuracy"]


@slow
def test_piped_output_consists_of_complete_lines(run):
    _, done = run
    assert "\r" not in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0] == (
        "splits: trained on train (1437 examples); test (360 examples) is evaluated during training"
        " and chooses @best"
    )
    assert lines[1].startswith("convolutions: ")
    assert lines[2].startswith(
        "cifar_resnet8 on digits: 1437 examples, 1 epoch, 30 steps of 48 on 8 cpu devices"
    )
    assert re.search(
        r"step 30/30, [\d:]+ elapsed, 00:00 left: loss [\d.]+, accuracy [\d.]+, [\d,]+ examples/s,"
        r" test [\d.]+",
        lines[-2],
    )
    assert re.fullmatch(
        r"test accuracy [\d.]+ on 360 examples, at step 30; best test accuracy [\d.]+, at step 30;"
        r" waited for data in 0 % of the training time; saved in run",
        lines[-1],
    )
    assert done.stderr == ""


@slow
def test_same_config_gives_the_same_bits(run, tmp_path):
    path, _ = run
    start(f"--workdir={tmp_path}/again")
    hashes = {
        json.loads((folder / "results.json").read_text())["params_sha256"]
        for folder in (path, tmp_path / "again")
    }
    assert len(hashes) == 1
    assert read_losses(path) == read_losses(tmp_path / "again")


@slow
def test_one_device_and_a_mesh_have_the_same_losses(run, tmp_path):
    path, _ = run
    start(f"--workdir={tmp_path}/one", devices=1)
    start(f"--workdir={tmp_path}/mesh", "--config.parallel=mesh")
    np.testing.assert_allclose(read_losses(tmp_path / "one"), read_losses(path), rtol=1e-4)
    np.testing.assert_allclose(read_losses(tmp_path / "mesh"), read_losses(path), rtol=1e-4)


@slow
def test_finished_run_is_reported_and_unchanged(run, capsys):
    path, _ = run
    before = file_contents(path)
    assert run_train(*FLAGS, f"--workdir={path}") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("run already finished\ntest accuracy")
    assert file_contents(path) == before


@slow
def test_workdir_with_another_config_is_rejected_unchanged(run, capsys):
    path, _ = run
    before = file_contents(path)
    assert run_train(*FLAGS, "--config.batch_size=64", f"--workdir={path}") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "has a run with another config (batch_size 48, now 64): choose another" in err
    assert file_contents(path) == before


RECIPES = {
    "def get_config(): return 1/0": "ZeroDivisionError",
    "import nothing_of_the_kind": "nothing_of_the_kind",
    "x = 1": "get_config",
    "def (": "SyntaxError",
    "import sys; sys.exit(3)": "SystemExit: 3",
    "def get_config(x): pass": "get_config",
    "from resflax.train import default_config as get_config\nget_config().foo = 1": "foo",
}


@pytest.mark.parametrize("text", RECIPES)
def test_recipe_that_fails_to_load_is_one_line(text, capsys, tmp_path):
    recipe = tmp_path / "bad.py"
    recipe.write_text(text)
    assert run_train(f"--config={recipe}") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    assert "bad.py" in err
    assert RECIPES[text] in err
    assert "Traceback" not in err
    assert len(err) < 400


def test_overrides_can_precede_the_recipe(capsys, tmp_path):
    flags = ["--config.seed=-3", "--config", ROOT / "configs" / "digits.py"]
    assert run_train(*flags, f"--workdir={tmp_path}/run") == 2
    assert "config.seed is -3" in capsys.readouterr().err


@slow
def test_nonfinite_loss_stops_the_run_with_one_line(capsys, tmp_path):
    flags = ["--config.learning_rate=1e30", "--config.warmup_epochs=0", "--config.momentum=0"]
    assert run_train(*FLAGS, *flags, f"--workdir={tmp_path}/run") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    assert re.search(
        r"step \d+, learning rate [\d.]+e\+(29|30), not finite: .*groups, first stem_conv: try a"
        r" lower config.learning_rate",
        err,
    )
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.slow
def test_process_exits_with_one_line_instead_of_a_traceback():
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--config.model=resnet51"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unknown model 'resnet51'")
    assert "Traceback" not in done.stderr


def test_help_lists_all_keys_with_their_defaults(capsys):
    assert run_train("--help") == 0
    out = capsys.readouterr().out
    assert "--config.learning_rate=0.1" in out
    assert "--config.data.pad_crop=0" in out
