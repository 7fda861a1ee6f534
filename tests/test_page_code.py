"""Python code of pages of docs/ that have no tests of their own; all pages with code have one."""

from pathlib import Path

import numpy as np
import pytest
from helpers.pages import DOCS, GUIDES, python_blocks
from helpers.trained_models import trained_model

from resflax.export import export

LABELS = ("cat", "dog", "owl")


def blocks_of(page):
    return python_blocks((DOCS / page).read_text())


def test_every_page_with_python_code_is_named_in_a_test():
    tests = "\n".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    for page in GUIDES:
        assert not blocks_of(page.name) or f'"{page.name}"' in tests, page.name


@pytest.mark.slow
def test_python_code_of_ensembles_page_runs():
    (block,) = blocks_of("ensembles.md")
    namespace: dict = {}
    exec(block, namespace)
    assert namespace["logits"].shape == (30, 2, 10)


@pytest.mark.slow
def test_python_code_of_export_page_runs(tmp_path, monkeypatch):
    torch, *_ = map(pytest.importorskip, ("torch", "timm", "onnx", "onnxruntime"))
    monkeypatch.chdir(tmp_path)
    model = trained_model("test_resnet", labels=LABELS, num_classes=3)
    for name in ("pets", "digits.onnx", "digits.stablehlo"):
        export(model, name)
    in_timm, in_onnx, in_jax, in_nnx = blocks_of("export.md")
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    names: dict = {"images": images.transpose(0, 3, 1, 2)}
    exec(in_timm, names)
    with torch.no_grad():
        logits = [names["model"](torch.tensor(names["images"])).numpy()]
    exec(in_onnx, names)
    assert tuple(names["class_names"]) == LABELS
    logits.append(names["logits"])
    names["images"] = images
    assert 'load_pretrained("runs/digits")' in in_nnx
    for block in (in_jax, in_nnx.replace("runs/digits", "pets")):
        exec(block, names)
        logits.append(np.asarray(names["logits"]))
    expected = np.asarray(model.logits(images))
    for found in logits:
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    loss = names["train_step"](names["network"], names["optimizer"], images, np.array([0, 1]))
    assert np.isfinite(loss)
