"""The Python code of pages of docs/, run with small networks; links of all pages."""

import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.pages import DOCS, PAGES, README, python_blocks
from PIL import Image

from resflax import get_spec
from resflax.cli.flags import parse
from resflax.train import check_config
from resflax.train.config_keys import KEYS
from resflax.weights import load_file, save_file, to_torch
from resflax.weights.shapes import variable_shapes


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    shapes = variable_shapes(get_spec("test_resnet"))
    variables = jax.tree.map(lambda x: rng.uniform(0.1, 0.9, x.shape).astype(np.float32), shapes)
    (tmp_path / "net").mkdir()
    arrays = to_torch("test_resnet", variables)
    save_file("net/model.safetensors", arrays)
    save_file("resnet.safetensors", arrays)
    config = {"architecture": "test_resnet", "num_classes": 1000}
    config["pretrained_cfg"] = {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3}
    Path("net/config.json").write_text(json.dumps(config))
    shutil.copytree("net", "other")
    Image.fromarray(rng.integers(0, 256, (70, 80, 3), np.uint8)).save("cat.jpg")
    return tmp_path


@pytest.mark.slow
def test_python_code_of_weights_page_runs(folder, capsys):
    text = (DOCS / "weights.md").read_text()
    for name, replacement in (
        ("timm/resnet50.a1_in1k", "net"),
        ("resnet50.safetensors", "resnet.safetensors"),
        ('"resnet50"', '"test_resnet"'),
        ('load_ensemble("runs/x")', 'load_ensemble(["net", "other"])'),
    ):
        assert name in text
        text = text.replace(name, replacement)
    *blocks, torch_block = python_blocks(text)
    assert len(blocks) == 5
    assert "load_state_dict" in torch_block
    namespace: dict = {}
    for block in blocks:
        exec(block, namespace)
    assert capsys.readouterr().out == (
        "[('stage1', 32, 4), ('stage2', 48, 8), ('stage3', 192, 16), ('stage4', 96, 16)]\n"
    )
    assert namespace["logits"].shape == (1, 1000)
    assert namespace["member_logits"].shape == (2, 1, 1000)
    np.testing.assert_allclose(namespace["probabilities"].sum(), 1, rtol=1e-5)
    assert [m.shape[1] for m in namespace["maps"]] == [16, 8, 4, 4]
    # The file was written after one training step with a new head of 10 classes.
    before, after = load_file("net/model.safetensors"), load_file("finetuned.safetensors")
    assert before.keys() == after.keys()
    assert after["fc.weight"].shape == (10, 96)


def test_links_of_all_pages_exist():
    for page in (*PAGES, README):
        for link in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_recipes_of_all_pages_exist():
    for page in (*PAGES, README):
        for config in re.findall(r"--config=(configs/\w+\.py)", page.read_text()):
            assert (DOCS.parent / config).exists(), f"{page.name}: {config}"


def test_config_keys_of_all_pages_exist():
    wrong = {"KEY", "lr"}  # a placeholder, and the example of a name that other tools have
    for page in (*PAGES, README):
        found = set(re.findall(r"--config\.([A-Za-z_]+(?:\.[a-z_]+)?)", page.read_text()))
        assert found - wrong <= set(KEYS), f"{page.name}: {found - wrong - set(KEYS)}"


@pytest.mark.slow
@pytest.mark.parametrize("page", ["finetuning.md", "losses.md"])
def test_python_code_of_training_page_runs(page):
    (code,) = python_blocks((DOCS / page).read_text())
    namespace: dict = {}
    exec(code, namespace)
    assert np.isfinite(namespace["metrics"]["loss"])


def test_config_keys_of_fine_tuning_page_are_valid():
    text = (DOCS / "finetuning.md").read_text()
    flags = re.findall(r"--config\.[a-z_.]+=\S+", text.replace("'", ""))
    recipe = f"--config={DOCS.parent / 'configs' / 'finetune.py'}"
    others = ["--config.dataset=folder:flowers", "--config.pretrained=weights.safetensors"]
    for flag in (flag.strip("`") for flag in flags):
        check_config(parse([recipe, *others, flag]).config)
    assert len(flags) >= 10


def test_site_has_every_page():
    index = (DOCS / "index.md").read_text()
    entries = re.findall(r"^(?:notebooks/)?[a-z]\w+$", index, re.MULTILINE)
    pages = [str(page.relative_to(DOCS).with_suffix("")) for page in PAGES]
    assert sorted(["index", *entries]) == sorted(pages)
