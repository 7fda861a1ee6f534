"""Runs without `--config`: the digits' recipe, the general one, or that of the workdir."""

import json

import numpy as np
import pytest
from helpers.commands import run_train
from helpers.image_folders import write_folder

from resflax import UserError
from resflax.cli.dataset_recipe import workdir_name
from resflax.cli.flags import parse
from resflax.cli.recipe import load_recipe
from resflax.train import check_config, default_config
from resflax.train.config import to_json_dict


def image_folder(root, sizes, count=4):
    rng = np.random.default_rng(0)
    files = {
        f"{split}/{name}/{i}.png": rng.integers(0, 255, (*sizes[i % len(sizes)], 3), np.uint8)
        for split in ("train", "test")
        for name in "ab"
        for i in range(count)
    }
    return write_folder(root, files)


@pytest.mark.parametrize("words", [[], ["--config.dataset=digits"], ["--config.epochs=3"]])
def test_digits_keep_their_recipe(words):
    command = parse(words)
    expected = load_recipe("configs/digits.py")
    expected.epochs = command.config.epochs
    assert to_json_dict(command.config) == to_json_dict(expected)
    assert (command.name, command.notes) == ("digits", ())


def test_folder_gets_a_recipe_for_its_images(tmp_path):
    small = image_folder(tmp_path / "small", [(16, 16)])
    command = parse([f"--config.dataset={small}"])
    assert command.name == "small"
    assert command.config.data.image_size == 0
    assert command.notes[0].startswith(
        "no --config: recipe for 8 training images of 16x16 pixels in 2 classes: batch_size="
    )
    check_config(command.config)
    mixed = image_folder(tmp_path / "mixed", [(16, 20), (30, 20)])
    command = parse([f"--config.dataset={mixed}"])
    assert command.config.data.image_size > 0
    assert "of several or large sizes in 2 classes" in command.notes[0]
    check_config(command.config)


def test_keys_of_the_command_line_come_before_the_recipe(tmp_path):
    folder = image_folder(tmp_path / "images", [(16, 20), (30, 20)])
    flags = ["--config.epochs=3", "--config.optimizer=adamw", "--config.data.image_size=32"]
    command = parse([f"--config.dataset={folder}", *flags])
    config = command.config
    assert (config.epochs, config.optimizer, config.data.image_size) == (3, "adamw", 32)
    assert "epochs=" not in command.notes[0].replace("warmup_epochs=", "").replace(
        "every_epochs", ""
    )
    check_config(config)


def test_keys_that_no_recipe_sets_keep_their_types(tmp_path):
    folder = image_folder(tmp_path / "images", [(16, 16)])
    keys = ["--config.spec.stem_width=4", "--config.spec.zero_init=false", "--config.scan=true"]
    config = parse([f"--config.dataset={folder}", *keys]).config
    assert (config.spec.stem_width, config.spec.zero_init, config.scan) == (4, False, True)


def test_weights_choose_the_model_of_the_recipe(tmp_path):
    folder = image_folder(tmp_path / "images", [(16, 20), (30, 20)])
    config = parse([f"--config.dataset={folder}", "--config.pretrained=runs/x"]).config
    assert (config.model, config.data.image_size) == ("", -1)
    assert (
        parse([f"--config.dataset={folder}", "--config.model=resnet18"]).config.model == "resnet18"
    )


def write_run(workdir, **keys):
    config = default_config()
    config.update_from_flattened_dict(
        {"epochs": 7, "schedule": "step", "decay_epochs": (3,), **keys}
    )
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(to_json_dict(config)))
    return f"--workdir={workdir}"


def test_workdir_with_a_run_of_the_dataset_has_the_recipe(tmp_path):
    """Without the data, which are not read."""
    workdir = write_run(tmp_path / "run", dataset="folder:/gone")
    for dataset in ("folder:/gone", "folder:/moved"):
        command = parse([f"--config.dataset={dataset}", workdir, "--config.epochs=9"])
        config = command.config
        assert (config.epochs, config.decay_epochs, config.dataset) == (9, (3,), dataset)
        assert command.notes == (f"no --config: the recipe is that of the run in {tmp_path}/run",)
    with pytest.raises(UserError, match="folder /gone does not exist"):
        parse(["--config.dataset=folder:/gone", workdir, "--resume=never"])
    with pytest.raises(UserError, match="mnist"):
        parse(["--config.dataset=mnist", workdir, "--config.data.data_dir=/nowhere"])


def test_config_of_another_version_is_one_line(capsys, tmp_path):
    workdir = write_run(tmp_path / "run", dataset="folder:/gone")
    file = tmp_path / "run" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "lr": 0.1}))
    assert run_train("--config.dataset=folder:/gone", workdir) == 2
    err = capsys.readouterr().err
    assert "is not a config of this version: unknown config key 'config.lr'" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("folder:/data/flowers", "flowers"), ("folder:/data/flowers/", "flowers"),
        ("folder:my photos", "my-photos"), ("csv:lists/train.csv", "train"), ("hf:d/cats", "cats"),
        ("mnist", "mnist"), ("emnist/letters", "emnist-letters"), ("mnist:3.*.*", "mnist"),
        ("fake:8x8x3:2:16", "fake"), ("folder:Fl\u00f6wers", "Fl\u00f6wers"), ("folder:-", "run"),
    ],
)  # fmt: skip
def test_workdirs_are_named_after_the_dataset(dataset, name):
    assert workdir_name(dataset) == name


@pytest.mark.slow
def test_run_without_a_config_is_named_after_its_dataset(monkeypatch, capsys, tmp_path):
    image_folder(tmp_path / "birds", [(16, 16)])
    monkeypatch.chdir(tmp_path)
    flags = ["--config.model=cifar_resnet8", "--config.epochs=1", "--config.spec.depths=(1,)"]
    assert run_train("--config.dataset=folder:birds", *flags, "--config.spec.widths=(16,)") == 0
    assert capsys.readouterr().out.startswith("no --config: recipe for 8 training images of 16x16")
    assert [path.name.startswith("birds-") for path in (tmp_path / "runs").iterdir()] == [True]
