"""`configs/finetune.py`: a folder of images of mixed sizes and pretrained weights are enough."""

import json

import numpy as np
import pytest
from helpers.commands import run_train
from helpers.networks import randomized, variables_of
from PIL import Image
from sklearn.datasets import load_sample_images

from resflax import create_model
from resflax.weights import load_pretrained, save_file, to_torch

RECIPE = "--config=configs/finetune.py"


def write_photographs(root, examples):
    """Writes JPEGs of mixed sizes, cut from scikit-learn's two photographs, one class each."""
    rng = np.random.default_rng(0)
    for name, pixels in zip(("china", "flower"), load_sample_images().images, strict=True):
        for split, count in (("train", examples), ("test", examples // 4)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                height, width = rng.integers(70, 200, 2)
                top = rng.integers(0, pixels.shape[0] - height)
                left = rng.integers(0, pixels.shape[1] - width)
                cut = pixels[top : top + height, left : left + width]
                Image.fromarray(cut).save(folder / f"{i:03}.jpg", quality=90)
    return f"folder:{root}"


@pytest.mark.slow
def test_recipe_needs_a_folder_and_weights_only(tmp_path, capsys):
    """The weights are a folder in timm's layout, of a small network for images of 64 pixels."""
    dataset = write_photographs(tmp_path / "images", 20)
    weights = tmp_path / "weights"
    weights.mkdir()
    model = create_model("test_resnet", num_classes=5, scan=False)
    variables = randomized(variables_of(model))
    save_file(weights / "model.safetensors", to_torch("test_resnet", variables, num_classes=5))
    config = {
        "architecture": "test_resnet",
        "num_classes": 5,
        "pretrained_cfg": {"input_size": [3, 64, 64], "crop_pct": 0.95, "interpolation": "bicubic"},
    }
    (weights / "config.json").write_text(json.dumps(config))
    run = tmp_path / "run"
    flags = [f"--config.dataset={dataset}", f"--config.pretrained={weights}", f"--workdir={run}"]
    assert run_train(RECIPE, *flags, "--config.epochs=2") == 0
    out = capsys.readouterr().out
    assert "new head for 2 classes" in out
    assert "evaluated at 64x64, crop 0.95, bicubic" in out
    tuned = load_pretrained(run)
    assert tuned.classes == ("china", "flower")
    assert tuned.preprocess.size == (64, 64)
    assert tuned.preprocess.crop_pct == 0.95


@pytest.mark.slow
def test_recipe_without_weights_is_one_line(tmp_path, capsys):
    flags = f"--workdir={tmp_path}/run", "--config.dataset=digits"
    assert run_train(RECIPE, *flags) == 2
    err = capsys.readouterr().err
    assert "config.pretrained is '': expected pretrained weights" in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_recipe_without_a_dataset_is_one_line(tmp_path, capsys):
    assert run_train(RECIPE, f"--workdir={tmp_path}/run", "--config.pretrained=w") == 2
    err = capsys.readouterr().err
    assert "config.dataset is '': expected folder:PATH, " in err
    assert err.count("\n") == 1
