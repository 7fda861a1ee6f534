"""Runs whose data were moved or deleted: resumed with their new path, or finished."""

import json
import shutil

import pytest
from helpers.image_folders import constant_image, write_folder

from resflax import UserError
from resflax.run.config_diff import config_diff
from resflax.run.signals import Interrupt, InterruptedRunError
from resflax.train import default_config, fit


class Stopped(Interrupt):
    received = 15


def make_config(dataset):
    """A network of one block, for two steps of eight images."""
    config = default_config()
    config.model, config.dataset, config.epochs, config.batch_size = "cifar_resnet8", dataset, 1, 8
    config.spec.update(depths=(1,), widths=(4,), stem_width=4)
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "old"
    images = {
        f"{split}/{name}/{i}.png": constant_image(60 * i + offset, 8, 8)
        for split in ("train", "test")
        for offset, name in enumerate("ab")
        for i in range(4 if split == "test" else 8)
        if 60 * i < 250
    }
    write_folder(root, images)
    return root


@pytest.fixture(scope="module")
def expected(folder, tmp_path_factory):
    """The results of a run that was neither stopped nor moved."""
    return fit(make_config(f"folder:{folder}"), tmp_path_factory.mktemp("run"), silent=True)


@pytest.fixture
def stopped(folder, tmp_path):
    """A run that was stopped after its first step, and a copy of its data."""
    config = make_config(f"folder:{folder}")
    with pytest.raises(InterruptedRunError):
        fit(config, tmp_path / "run", interrupt=Stopped(), silent=True)
    shutil.copytree(folder, tmp_path / "new")
    return tmp_path / "run", tmp_path / "new"


@pytest.mark.slow
def test_moved_data_resume_a_run_bit_for_bit(stopped, expected, capsys):
    run, new = stopped
    results = fit(make_config(f"folder:{new}"), run, silent=True)
    assert results["params_sha256"] == expected["params_sha256"]
    assert results["test_loss"] == expected["test_loss"]
    assert json.loads((run / "config.json").read_text())["dataset"] == f"folder:{new}"
    # A finished run needs no data.
    shutil.rmtree(new)
    assert fit(make_config(f"folder:{new}"), run) == results
    assert capsys.readouterr().out.startswith("run already finished\n")


@pytest.mark.slow
def test_other_data_in_the_new_place_are_refused(stopped):
    run, new = stopped
    (new / "train" / "a" / "0.png").unlink()
    before = (run / "config.json").read_bytes()
    with pytest.raises(UserError, match="have changed: 1 example removed from class 'a'"):
        fit(make_config(f"folder:{new}"), run, silent=True)
    assert (run / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("folder:a", "folder:b", []),
        ("csv:a.csv", "csv:b.csv", []),
        ("folder:a", "csv:a.csv", ["dataset 'folder:a', now 'csv:a.csv'"]),
        ("folder:a", "digits", ["dataset 'folder:a', now 'digits'"]),
        ("digits", "mnist", ["dataset 'digits', now 'mnist'"]),
    ],
)
def test_only_files_can_move(old, new, changes):
    movable = {"dataset": ("folder:", "csv:")}
    assert config_diff({"dataset": old}, {"dataset": new}, movable=movable) == changes
