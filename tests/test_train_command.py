"""`train.py` as its users meet it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import train  # noqa: E402
from resflax.cli.flags import report  # noqa: E402

SMALL = ["--config.model=cifar_resnet8", "--config.epochs=1", "--config.log_every_steps=7"]


def call(monkeypatch, capsys, *args):
    """Runs `train.py` in this process; returns its exit status, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["train.py", *args])
    status = report(train.main)
    return status, *capsys.readouterr()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run, in a process of its own, from another folder than the repository's."""
    home = tmp_path_factory.mktemp("home")
    command = [sys.executable, str(ROOT / "train.py"), *SMALL, "--workdir=run"]
    # 48 divides neither split: 1437 = 29 * 48 + 45, 360 = 7 * 48 + 24.
    command += ["--config.batch_size=48"]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return home / "run", done


def test_a_run_leaves_what_the_architecture_says(run):
    folder, _ = run
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "metrics.jsonl", "results.json", "checkpoints", "curves.png",
    }  # fmt: skip
    results = json.loads((folder / "results.json").read_text())
    assert results["test_examples"] == 360
    assert results["train_examples"] == 1437
    assert results["steps"] == 30  # ceil(1437 / 48)
    # cifar_resnet8 on one channel: two input planes of the stem's 3x3x16 fewer.
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
    config = json.loads((folder / "config.json").read_text())
    assert config["model"] == "cifar_resnet8"
    assert config["batch_size"] == 48
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_records_have_every_key_and_come_in_order(run):
    folder, _ = run
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        assert set(record) == {
            "step", "epoch", "split", "loss", "accuracy", "learning_rate", "examples_per_second",
        }  # fmt: skip
        assert record["epoch"] == pytest.approx(record["step"] * 48 / 1437, abs=1e-4)
    assert [r["step"] for r in records if r["split"] == "train"] == [7, 14, 21, 28, 30]
    assert [r["step"] for r in records if r["split"] == "test"] == [30]
    results = json.loads((folder / "results.json").read_text())
    assert records[-1]["accuracy"] == results["test_accuracy"]


def test_piped_output_is_plain_lines_with_a_closing_one(run):
    _, done = run
    assert "\r" not in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0].startswith(
        "cifar_resnet8 on digits: 1437 examples, 1 epochs, 30 steps of 48 on 8 cpu devices"
    )
    assert re.search(
        r"step 30/30: loss [\d.]+, accuracy [\d.]+, [\d,]+ examples/s, test [\d.]+, 00:00 left",
        lines[-2],
    )
    assert re.fullmatch(r"test accuracy [\d.]+ on 360 examples; saved in run", lines[-1])
    assert done.stderr == ""


def test_the_same_config_gives_the_same_bits(run, tmp_path):
    folder, _ = run
    command = [sys.executable, str(ROOT / "train.py"), *SMALL, "--config.batch_size=48"]
    subprocess.run([*command, f"--workdir={tmp_path}/again"], check=True, capture_output=True)
    hashes = {
        json.loads((f / "results.json").read_text())["params_sha256"]
        for f in (folder, tmp_path / "again")
    }
    assert len(hashes) == 1
    assert losses(folder) == losses(tmp_path / "again")


def losses(folder):
    return [
        json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


def test_one_device_and_a_mesh_of_eight_lose_the_same(run, tmp_path):
    folder, _ = run
    command = [sys.executable, str(ROOT / "train.py"), *SMALL, "--config.batch_size=48"]
    one = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    subprocess.run(
        [*command, f"--workdir={tmp_path}/one"], check=True, capture_output=True, env=one
    )
    mesh = [*command, f"--workdir={tmp_path}/mesh", "--config.parallel=mesh"]
    subprocess.run(mesh, check=True, capture_output=True)
    np.testing.assert_allclose(losses(tmp_path / "one"), losses(folder), rtol=1e-4)
    np.testing.assert_allclose(losses(tmp_path / "mesh"), losses(folder), rtol=1e-4)


def test_a_run_that_has_ended_says_so_and_is_left_alone(run, monkeypatch, capsys):
    folder, _ = run
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    keys = [*SMALL, "--config.batch_size=48", f"--workdir={folder}"]
    status, out, err = call(monkeypatch, capsys, *keys)
    assert (status, err) == (0, "")
    assert out.startswith("this run has ended before: there is nothing left to do\ntest accuracy")
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_a_workdir_with_another_run_is_refused_and_left_alone(run, monkeypatch, capsys):
    folder, _ = run
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    status, _, err = call(monkeypatch, capsys, *SMALL, f"--workdir={folder}")
    assert (status, err.count("\n")) == (2, 1)
    assert "holds a run of another config (batch_size 48, now 64): choose another" in err
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


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
def test_a_recipe_that_fails_to_load_is_one_line(text, monkeypatch, capsys, tmp_path):
    recipe = tmp_path / "bad.py"
    recipe.write_text(text)
    status, _, err = call(monkeypatch, capsys, f"--config={recipe}")
    assert (status, err.count("\n")) == (2, 1), err
    assert "bad.py" in err
    assert RECIPES[text] in err
    assert "Traceback" not in err
    assert len(err) < 400


def test_overrides_may_stand_before_the_recipe(monkeypatch, capsys, tmp_path):
    args = ["--config.seed=-3", "--config", str(ROOT / "configs" / "digits.py")]
    status, _, err = call(monkeypatch, capsys, *args, f"--workdir={tmp_path}/run")
    assert status == 2
    assert "config.seed is -3" in err


def test_a_loss_that_is_not_finite_ends_the_run(monkeypatch, capsys, tmp_path):
    args = ["--config.learning_rate=1e30", "--config.warmup_epochs=0", "--config.momentum=0"]
    status, _, err = call(monkeypatch, capsys, *SMALL, *args, f"--workdir={tmp_path}/run")
    assert (status, err.count("\n")) == (2, 1), err
    assert re.search(
        r"step \d+, learning rate [\d.]+e\+(29|30), not finite: .*groups, first stem_conv: try a"
        r" lower config.learning_rate",
        err,
    )
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_traceback_never_reaches_the_terminal():
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--config.model=resnet51"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unknown model 'resnet51'")
    assert "Traceback" not in done.stderr


def test_help_lists_every_key(monkeypatch, capsys):
    status, out, _ = call(monkeypatch, capsys, "--help")
    assert status == 0
    assert "--config.learning_rate=0.1" in out
    assert "--config.data.pad_crop=0" in out
