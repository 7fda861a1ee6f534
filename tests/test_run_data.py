"""The training split of runs in two parts, and runs that held out different examples."""

import json
import shutil

import numpy as np
import pytest
from helpers.image_folders import constant_image, write_folder
from helpers.workdirs import SavedStep, write_workdir

from resflax.cli.run_data import (
    TrainingSplit,
    find_training_split,
    have_different_training_data,
    own_config,
)
from resflax.data import load_dataset

DATA = {
    "data_dir": "",
    "image_size": 0,
    "channels": 0,
    "on_bad_example": "raise",
    "validation": 0.2,
    "validation_seed": 0,
}


def write_run(path, dataset="digits", seed=0, **data):
    (path / "checkpoints").mkdir(parents=True)
    config = {"dataset": dataset, "model": "", "epochs": 1, "seed": seed, "dtype": "float32"}
    (path / "config.json").write_text(json.dumps(config | {"data": DATA | data}))
    return str(path)


@pytest.mark.parametrize("size", [0, 16], ids=["in memory", "streamed"])
def test_parts_are_disjoint_and_complete(size, tmp_path):
    files = {f"train/{'ab'[i % 2]}/{i}.png": constant_image(i, 16, 16) for i in range(20)}
    dataset = write_folder(tmp_path / "images", files)
    run = write_run(tmp_path / "x", dataset, image_size=size)
    training = find_training_split([run])
    trained, held_out = (
        {int(source.read(i)[0][0, 0, 0]) for i in range(len(source))}
        for source in (training.trained(), training.held_out())
    )
    assert (len(trained), len(held_out)) == (16, 4)
    assert trained | held_out == set(range(20))
    assert training.has_name(str(tmp_path / "images" / "train"))
    assert not training.has_name(str(tmp_path / "images" / "test"))


# What is done to the copy of a run's data, and whether it is still the run's dataset.
COPIES = {
    "the same": (lambda folder: None, True),
    "litter": (lambda folder: (folder / "train" / "Thumbs.db").touch(), True),
    "other split name": (lambda folder: (folder / "train").rename(folder / "Train"), True),
    "an image less": (lambda folder: (folder / "train" / "a" / "0.png").unlink(), False),
    "other pixels": (
        lambda folder: (folder / "train" / "a" / "0.png").write_bytes(
            (folder / "train" / "b" / "1.png").read_bytes()
        ),
        False,
    ),
    "one split": (lambda folder: (folder / "train").rename(folder / "pictures"), False),
}


@pytest.mark.parametrize("size", [0, 16], ids=["in memory", "streamed"])
@pytest.mark.parametrize("name", COPIES)
def test_dataset_that_moved_is_that_of_the_run(name, size, tmp_path):
    change, is_own = COPIES[name]
    files = {f"train/{'ab'[i % 2]}/{i}.png": constant_image(i, 16, 16) for i in range(20)}
    old, new = (write_folder(tmp_path / name, files) for name in ("old", "new"))
    data = load_dataset(old, image_size=size).fingerprint()
    run = write_workdir(tmp_path / "run", SavedStep(1), metadata={"data": data})
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"dataset": old}))
    shutil.rmtree(tmp_path / "old")
    change(tmp_path / "new")
    assert own_config([str(run)], new).get("dataset") == (new if is_own else None)


# Values in which a second run differs, and whether it then holds out other examples.
DIFFERENCES = {
    "nothing": ({}, False),
    "seed": ({"seed": 7}, False),
    "size of streamed images": ({"image_size": 32}, False),
    "training split": ({"train_split": "train[:90%]"}, True),
    "folder": ({"data_dir": "/other"}, True),
    "bad examples": ({"on_bad_example": "skip"}, True),
    "share": ({"validation": 0.1}, True),
    "seed of the share": ({"validation_seed": 1}, True),
    "dataset": ({"dataset": "mnist"}, True),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_runs_must_hold_out_the_same_examples(name, tmp_path):
    values, is_other = DIFFERENCES[name]
    runs = [write_run(tmp_path / "x"), write_run(tmp_path / "y", **values)]
    found = find_training_split(runs)
    assert have_different_training_data(runs) is is_other
    if is_other:
        assert found == f"{runs[0]} and {runs[1]} held out different examples (see config.data)"
    else:
        assert isinstance(found, TrainingSplit)


def test_streamed_images_of_two_sizes_hold_out_the_same(tmp_path):
    runs = [write_run(tmp_path / name, image_size=size) for name, size in (("x", 32), ("y", 48))]
    assert isinstance(find_training_split(runs), TrainingSplit)


def test_noise_of_different_seeds_is_different_data(tmp_path):
    fake = "fake:4x4x1:2:20"
    runs = [write_run(tmp_path / str(seed), fake, seed) for seed in (0, 1)]
    assert "different examples" in find_training_split(runs)
    assert len(find_training_split(runs[:1]).held_out()) == 4


def test_data_dir_of_the_command_is_that_of_all_runs(tmp_path):
    runs = [write_run(tmp_path / name, data_dir=name) for name in "xy"]
    assert isinstance(find_training_split(runs), str)
    assert find_training_split(runs, "/data").data_dir == "/data"
    assert not have_different_training_data(runs, "/data")


def test_runs_that_held_out_nothing_have_the_same_data(tmp_path):
    runs = [
        write_run(tmp_path / name, validation=0.0, image_size=size)
        for name, size in (("x", 0), ("y", 8))
    ]
    assert find_training_split(runs) == f"the config of {runs[0]} has data.validation 0"
    assert not have_different_training_data(runs)
    assert find_training_split([runs[0], "model.onnx"]).endswith("data.validation 0")
    assert find_training_split(["model.onnx"]) == "model.onnx is not the workdir of a run"
    assert own_config(runs)["dataset"] == "digits"
    assert own_config([runs[0], "model.onnx"]) == {}


def test_digits_are_divided_as_training_divides_them(tmp_path):
    training = find_training_split([write_run(tmp_path / "x")])
    parts = training.trained(), training.held_out()
    images = [{source.read(i)[0].tobytes() for i in range(len(source))} for source in parts]
    assert [len(source) for source in parts] == [1151, 286]
    assert np.intersect1d(*(list(part) for part in images)).size == 0
