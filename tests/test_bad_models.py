"""Invalid models, datasets and images: every command prints one line and returns 2."""

import json
import re
import sys

import pytest
from helpers.commands import run_command
from helpers.image_folders import constant_image, write_folder
from helpers.weight_files import write_timm_folder

from resflax.train import default_config
from resflax.train.config import to_json_dict
from resflax.weights import load_file, save_file

# How each command uses a model WHERE; {here} is a folder, see `files`.
COMMANDS = {
    "evaluate": ["evaluate", "WHERE", "--dataset=folder:{here}/data", "--out={here}/out"],
    "predict": ["predict", "--weights=WHERE", "--out={here}/out.csv", "{here}/data"],
    "onnx": ["export", "WHERE", "{here}/out.onnx", "--format=onnx"],
    "stablehlo": ["export", "WHERE", "{here}/out.stablehlo", "--format=stablehlo"],
    "timm": ["export", "WHERE", "{here}/out", "--format=timm"],
    "probe": ["probe", "WHERE", "--dataset=folder:{here}/data"],
    "average": ["average", "WHERE", "--dataset=folder:{here}/data", "--out={here}/out"],
    "train": [
        "train",
        "--config.pretrained=WHERE",
        "--config.model=",  # that of the weights
        "--config.dataset=folder:{here}/data",
        "--config.batch_size=8",
        "--workdir={here}/out",
    ],
}
# WHERE, and a regular expression for the error of every command.
MODELS = {
    "missing path": ("{here}/none", "none is not an existing file or folder"),
    "name without a tag": ("resnet18", "resnet18 is not an existing .* such as resnet18.a1_in1k"),
    "workdir without a checkpoint": ("{here}/run", "no checkpoint in .*/run: train the run first"),
    "checkpoint of a folder that is not a run": ("{here}/net@best", "net is not the workdir of a"),
    "folder without weights": ("{here}/data", "data"),
    "image for weights": ("{here}/data/test/a/0.png", "0.png is not a weights file"),
    "file that does not name its model": ("{here}/net.safetensors", "cannot tell which model"),
    "other names than weights": ("{here}/labels5", "labels5 has 5 class names for 3 classes"),
}
# Arguments, with the name of the command in `COMMANDS` and WHERE if it is not a valid network.
CASES = {
    "other model for evaluate": ("evaluate", ["--model=resnet18"], "not a state dict of"),
    "other model for predict": ("predict", ["--model=resnet18"], "not a state dict of"),
    "other model for onnx": ("onnx", ["--model=resnet18"], "not a state dict of"),
    "other model for stablehlo": ("stablehlo", ["--model=resnet18"], "not a state dict of"),
    "other model for timm": ("timm", ["--model=resnet18"], "not a state dict of"),
    "other model for probe": ("probe", ["--model=resnet18"], "not a state dict of"),
    "other model for average": ("average", ["--model=resnet18"], "not a state dict of"),
    "other model for train": ("train", ["--config.model=cifar_resnet14"], "not a state dict of"),
    "labels of another model": (
        "predict",
        ["--labels={here}/five.txt"],
        "five.txt has 5 labels: expected 3, one per class",
    ),
    "valid labels of another model": (
        "evaluate",
        ["--valid-labels={here}/five.txt"],
        "the valid label 'd'",
    ),
    "dataset with fewer classes": (
        "evaluate",
        ["--dataset=folder:{here}/fewer"],
        "has 2 classes, the model 3",
    ),
    "dataset with other classes": (
        "evaluate",
        ["--dataset=folder:{here}/other"],
        "has other classes than the model",
    ),
    "dataset that is not prepared": (
        "evaluate",
        ["--dataset=mnist", "--data-dir={here}"],
        "is not prepared in",
    ),
    "bad image for evaluate": (
        "evaluate",
        ["--dataset=folder:{here}/damaged"],
        "damaged/test/a/0.png: is not a readable image",
    ),
    "bad image for predict": (
        "predict",
        ["{here}/damaged"],
        "damaged/test/a/0.png: is not a readable image",
    ),
    "bad image for train": (
        "train",
        ["--config.dataset=folder:{here}/damaged", "--config.data.image_size=0"],
        "damaged/test/a/0.png: is not a readable image",
    ),
    "bad image for probe": (
        "probe",
        ["--dataset=folder:{here}/damaged"],
        "damaged/test/a/0.png: is not a readable image",
    ),
    "bad image for export": (
        "timm",
        ["--images={here}/damaged/test/a/0.png"],
        "damaged/test/a/0.png: is not a readable image",
    ),
    "unknown format": ("onnx", ["--format=tflite"], "unknown format 'tflite'"),
}
# Commands without an optional package: the error names the extra.
EXTRAS = {
    "onnx": ("onnx", [], "onnx"),
    "probe": ("probe", [], "sklearn"),
    "predict": ("parquet", ["--features={here}/out.parquet"], "pyarrow"),
    "evaluate": ("parquet", ["--predictions={here}/out.parquet"], "pyarrow"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A network with the classes a, b and c, images of it, and things that do not fit."""
    here = tmp_path_factory.mktemp("bad")
    write_timm_folder(here / "net", labels=["a", "b", "c"])
    write_timm_folder(here / "labels5", labels=[*"abcde"], classes=3)
    save_file(here / "net.safetensors", load_file(here / "net"))
    (here / "run").mkdir()
    config = to_json_dict(default_config())
    (here / "run" / "config.json").write_text(json.dumps(config))
    (here / "five.txt").write_text("\n".join("abcde"))
    for folder, classes in {"data": "abc", "fewer": "ab", "other": "abd", "damaged": "abc"}.items():
        images = {
            f"{split}/{name}/{i}.png": constant_image(60 * i, 16, 16)
            for split in ("train", "test")
            for name in classes
            for i in range(4)
        }
        write_folder(here / folder, images)
    (here / "damaged/test/a/0.png").write_bytes(b"\x89PNG, but no more")
    return here


def assert_one_line(files, capsys, arguments, message):
    before = sorted(files.rglob("*"))
    status = run_command(*(argument.replace("{here}", str(files)) for argument in arguments))
    out, error = capsys.readouterr()
    assert status == 2, (out, error)
    assert re.match(f"error: .*{message}", error), error
    assert error.count("\n") == 1
    assert sorted(files.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("command", COMMANDS)
def test_invalid_model_is_one_line_of_each_command(files, capsys, command, case):
    where, message = MODELS[case]
    arguments = [argument.replace("WHERE", where) for argument in COMMANDS[command]]
    assert_one_line(files, capsys, arguments, message)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_arguments_that_do_not_fit_the_model_are_one_line(files, capsys, case):
    command, more, message = CASES[case]
    arguments = [argument.replace("WHERE", "{here}/net") for argument in COMMANDS[command]]
    assert_one_line(files, capsys, [*arguments, *more], message)


@pytest.mark.slow
@pytest.mark.parametrize("command", EXTRAS)
def test_missing_package_names_the_extra(files, capsys, monkeypatch, command):
    extra, more, module = EXTRAS[command]
    for name in [*sys.modules]:
        if name.split(".")[0] == module:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    arguments = [argument.replace("WHERE", "{here}/net") for argument in COMMANDS[command]]
    message = rf'pip install "resflax\[{extra}\]"'
    assert_one_line(files, capsys, [*arguments, *more], message)
