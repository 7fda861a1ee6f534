"""Every recipe of `configs/` trains two steps, with its own keys and a small network."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import run_train
from helpers.image_folders import write_folder

from resflax.cli.recipe import load_recipe

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.py"))
NOISE = ("dataset=fake:32x32x3:10:32", "batch_size=16")
# What replaces `NOISE` and the network: recipes of other images, and those that need weights.
OTHERS: dict[str, tuple[str, ...]] = {
    "digits": (),
    "digits_efficient": (),
    "digits_ensemble": (),
    "ecg": (),
    "fashion_mnist_ensemble": ("dataset=fake:32x32x3:10:320", "batch_size=16"),  # some held out
    "bit_hyperrule": ("pretrained=", "reset_head=False", "data.image_size=32"),
    "finetune": ("pretrained=", "head_learning_rate=0", "data.image_size=32"),
}

# Recipe that trains the teacher of recipes that have one, on the same images.
TEACHER = "imagenet_resnet50_torchvision_v1.py"


def folder(root):
    rng = np.random.default_rng(0)
    files = {
        f"{split}/{label}/{i}.png": rng.integers(0, 256, (40, 36, 3), np.uint8)
        for split in ("train", "test")
        for label in "ab"
        for i in range(10)
    }
    return (f"dataset={write_folder(root, files)}", "batch_size=16")


def test_there_are_recipes_of_all_kinds():
    assert {*OTHERS} <= {*RECIPES}
    assert any(name.startswith("imagenet_") for name in RECIPES)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_recipe_trains_two_steps(tmp_path, name):
    flags = list(OTHERS.get(name, NOISE))
    if "pretrained=" in flags:
        flags += folder(tmp_path / "images")
    if name not in OTHERS or "pretrained=" in flags:
        flags.append("model=cifar_resnet8")
    if load_recipe(f"{CONFIGS}/{name}.py").dtype != "float32":
        flags.append("dtype=float32")
    keys = [f"--config.{flag}" for flag in [*flags, "max_steps=2"]]
    recipe = f"--config={CONFIGS}/{name}.py"
    if load_recipe(f"{CONFIGS}/{name}.py").distill.teacher:
        teacher = f"{tmp_path}/teacher"
        assert run_train(f"--config={CONFIGS}/{TEACHER}", *keys, f"--workdir={teacher}") == 0
        keys.append(f"--config.distill.teacher={teacher}")
    assert run_train(recipe, *keys, f"--workdir={tmp_path}/run") == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["steps"] == 2
    assert np.isfinite(results["test_loss"])


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("imagenet_")])
def test_recipe_says_whether_it_was_run(name):
    text = (CONFIGS / f"{name}.py").read_text().partition("from ml_collections")[0]
    assert "Measured" in text
    assert f"configs/{name}.py" in text  # its command
