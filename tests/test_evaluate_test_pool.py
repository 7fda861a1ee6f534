"""Which size test-time pooling takes as that of training: of runs, and of other weights."""

import dataclasses
import json

import pytest
from helpers.commands import run_command
from helpers.workdirs import CONFIG, SavedStep, write_workdir

EVALUATED = CONFIG._replace(preprocess=dataclasses.replace(CONFIG.preprocess, size=(24, 24)))
DATASET = "fake:24x24x1:10:20"
# By name: entries of `config.data`, and the size of the training images.
SIZES = {
    "image_size": ({"image_size": 16}, 16),
    "last row": ({"image_size": 8, "size_schedule": [[1, 12], [2, 20, 4]]}, 20),
    "row after the end": ({"image_size": 8, "size_schedule": [[1, 12], [3, 20]]}, 12),
    "schedule in memory": ({"image_size": 0, "size_schedule": [[1, 12]]}, 12),
}
UNKNOWN = {
    "in memory": {"image_size": 0},
    "pretrained model's": {"image_size": -1},
    "early version": {},
}


def write_run(path, data):
    """Writes a run of three epochs that evaluates images of 24 pixels."""
    write_workdir(path, SavedStep(1, 0.5), config=EVALUATED)
    run = {"dataset": DATASET, "model": "", "epochs": 3, "seed": 0, "dtype": "float32"}
    (path / "config.json").write_text(json.dumps(run | {"data": data}))
    return path


def evaluate(run, out, *options):
    return run_command("evaluate", run, "--calibrate=none", "--test-pool", f"--out={out}", *options)


@pytest.mark.parametrize("name", SIZES)
def test_training_size_of_a_run_is_that_of_its_config(name, tmp_path, capsys):
    """Not that of its evaluation, 24: images of 24 are larger, those of its training are not."""
    data, size = SIZES[name]
    run = write_run(tmp_path / "run", data)
    assert evaluate(run, tmp_path) == 0
    assert json.loads((tmp_path / "evaluation.json").read_text())["test_pool"] == [size, size]
    capsys.readouterr()
    assert evaluate(run, tmp_path, f"--size={size}") == 2
    assert f"larger than those of training, {size}x{size}, and" in capsys.readouterr().err


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_training_size_is_the_models_input_size(name, tmp_path, capsys):
    run = write_run(tmp_path / "run", UNKNOWN[name])
    assert evaluate(run, tmp_path) == 2
    assert "larger than the model's own input size, 24x24, and" in capsys.readouterr().err


def test_runs_of_different_training_sizes_are_refused(tmp_path, capsys):
    runs = [write_run(tmp_path / str(size), {"image_size": size}) for size in (12, 16)]
    assert evaluate(runs[0], tmp_path, runs[1]) == 2
    assert "needs networks with images of one size" in capsys.readouterr().err
