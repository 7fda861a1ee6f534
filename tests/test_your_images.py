"""The page "Your own images in ten minutes", run in order in an empty directory.

The page's code blocks run as they are, with one substitution: `resnet18.a1_in1k`, which needs the
Hub, is replaced by the path of a local folder in timm's layout with a small network.
"""

import csv
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.networks import randomized
from PIL import Image

from resflax import get_spec
from resflax.weights import save_file, to_torch
from resflax.weights.shapes import variable_shapes

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "your_images.md").read_text()
HUB_NAME = "resnet18.a1_in1k"
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", PAGE, re.DOTALL)
MODULES = {"sklearn": "scikit-learn", "timm": "timm", "torch": "torch", "onnxruntime": "onnx"}


def write_small_network(folder):
    """Writes timm's smallest ResNet with random weights, in timm's layout."""
    folder.mkdir()
    spec = get_spec("test_resnet")
    save_file(folder / "model.safetensors", to_torch(spec, randomized(variable_shapes(spec))))
    config = {"architecture": "test_resnet", "num_classes": 1000}
    config["pretrained_cfg"] = {"input_size": [3, 64, 64], "crop_pct": 0.95}
    (folder / "config.json").write_text(json.dumps(config))


def run_shell(block, environment):
    for command in block.splitlines():
        done = subprocess.run(
            ["bash", "-c", command], env=environment, capture_output=True, text=True
        )
        print(command, done.stdout, done.stderr, sep="\n")
        assert done.returncode == 0, command


def image_size(path):
    with Image.open(path) as image:
        return image.size


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Runs the page; returns its directory and the names that its Python code defines."""
    for module in MODULES:
        pytest.importorskip(module)
    root = tmp_path_factory.mktemp("your_images")
    write_small_network(root / "net")
    (root / "bin").mkdir()
    command = root / "bin" / "resflax"  # whether or not the package is installed
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m resflax "$@"\n')
    command.chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    environment["PATH"] = f"{command.parent}{os.pathsep}{environment['PATH']}"
    (root / "work").mkdir()
    names: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root / "work")
        for language, block in BLOCKS:
            code = block.replace(HUB_NAME, str(root / "net"))
            if language == "sh":
                run_shell(code, environment)
            else:
                exec(code, names)
    return root / "work", names


@pytest.mark.slow
def test_folder_has_200_jpegs_of_mixed_sizes(finished):
    files = list((finished[0] / "photos").rglob("*.jpg"))
    assert Counter(path.parent.parent.name for path in files) == {"train": 160, "test": 40}
    assert len({image_size(path) for path in files}) > 100


@pytest.mark.slow
def test_fine_tuned_network_separates_the_photographs(finished):
    results = json.loads((finished[0] / "runs/photos/results.json").read_text())
    assert results["test_examples"] == 40
    evaluation = json.loads((finished[0] / "report/evaluation.json").read_text())
    assert evaluation["examples"] == 40
    assert len(evaluation["per_class"]) == 2
    assert evaluation["accuracy"] == pytest.approx(results["test_accuracy"], abs=1e-6)
    assert evaluation["accuracy"] > 0.7


@pytest.mark.slow
def test_predictions_are_those_that_were_evaluated(finished):
    with open(finished[0] / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40 * 2
    top = [row for row in rows if row["rank"] == "1"]
    correct = sum(Path(row["path"]).parent.name == row["class"] for row in top)
    evaluation = json.loads((finished[0] / "report/evaluation.json").read_text())
    assert correct == round(40 * evaluation["accuracy"])
    assert min(image_size(finished[0] / "sheet.png")) > 300
    with np.load(finished[0] / "features.npz") as arrays:
        assert arrays["paths"].tolist() == [row["path"] for row in top]
        assert arrays["features"].shape == (40, 96)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["in_timm", "in_onnx", "in_stablehlo"])
def test_exported_networks_give_the_same_logits(finished, name):
    logits, exported = (np.asarray(finished[1][key]) for key in ("logits", name))
    assert finished[1]["classes"] == ("china", "flower")
    assert logits.shape == exported.shape == (1, 2)
    np.testing.assert_allclose(exported, logits, atol=1e-5 * np.abs(logits).max())


def test_page_names_the_substituted_network():
    assert f"instead of `{HUB_NAME}`" in " ".join(PAGE.split())
    assert [language for language, _ in BLOCKS].count("sh") == 4
