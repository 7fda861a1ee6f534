"""The Python of docs/weights.md runs, on timm's smallest net in a folder of the Hub's layout."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from resflax import get_spec
from resflax.weights import load, save, to_torch
from resflax.weights.bridge import shapes_of

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    shapes = shapes_of(get_spec("test_resnet"))
    variables = jax.tree.map(lambda x: rng.uniform(0.1, 0.9, x.shape).astype(np.float32), shapes)
    (tmp_path / "net").mkdir()
    arrays = to_torch("test_resnet", variables)
    save("net/model.safetensors", arrays)
    save("resnet.safetensors", arrays)
    card = {"architecture": "test_resnet", "num_classes": 1000}
    card["pretrained_cfg"] = {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3}
    Path("net/config.json").write_text(json.dumps(card))
    Image.fromarray(rng.integers(0, 256, (70, 80, 3), np.uint8)).save("cat.jpg")
    return tmp_path


def test_the_python_of_the_page_on_weights_runs(folder, capsys):
    text = (DOCS / "weights.md").read_text()
    for name, ours in (
        ("timm/resnet50.a1_in1k", "net"),
        ("resnet50.safetensors", "resnet.safetensors"),
        ('"resnet50"', '"test_resnet"'),
    ):
        assert name in text
        text = text.replace(name, ours)
    *blocks, in_pytorch = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 4
    assert all(len(block.strip().splitlines()) <= 10 for block in blocks)
    assert "load_state_dict" in in_pytorch
    namespace: dict = {}
    for block in blocks:
        exec(block, namespace)
    assert capsys.readouterr().out == (
        "[('stage1', 32, 4), ('stage2', 48, 8), ('stage3', 192, 16), ('stage4', 96, 16)]\n"
    )
    assert namespace["logits"].shape == (1, 1000)
    assert [m.shape[1] for m in namespace["maps"]] == [16, 8, 4, 4]
    # All but the head came from the folder, and went into the file after one step.
    before, after = load("net/model.safetensors"), load("mine.safetensors")
    assert before.keys() == after.keys()
    assert after["fc.weight"].shape == (10, 96)


def test_links_of_all_pages_lead_somewhere():
    for page in DOCS.glob("*.md"):
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (DOCS / link).exists(), f"{page.name}: {link}"
