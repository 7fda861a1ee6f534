"""StableHLO artefacts, loaded and run without resflax."""

import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers.modules import softmax
from helpers.small_specs import EXTRA_SPECS, shrink, zoo_specs
from helpers.trained_models import trained_model
from jax import export as jax_export

from resflax.export import ExportOptions, export
from resflax.export.stablehlo import export_stablehlo
from resflax.export.verify import normalize_pixels
from resflax.weights import PretrainedConfig
from resflax.weights.torch_reference import torch_logits
from resflax.zoo import get_spec

# Runs an artefact in a process in which resflax and Flax cannot be imported.
RUN = """
import sys
sys.modules["resflax"] = sys.modules["flax"] = None
import jax, numpy as np
path, *files = sys.argv[1:]
exported = jax.export.deserialize(bytearray(open(path, "rb").read()))
assert exported.platforms == ("cpu", "cuda", "tpu"), exported.platforms
for file in files:
    np.save(file.replace(".npy", "-out.npy"), exported.call(np.load(file)))
"""
SPECS = {
    **zoo_specs(),
    **EXTRA_SPECS,
    **{name: shrink(get_spec(name)) for name in ("resnet1d18", "r2plus1d_18")},
}


def run_without_resflax(path, batches):
    """Returns the outputs of an artefact for some batches of images."""
    files = [str(path.parent / f"{i}.npy") for i in range(len(batches))]
    for file, batch in zip(files, batches, strict=True):
        np.save(file, batch)
    subprocess.run([sys.executable, "-c", RUN, str(path), *files], check=True, cwd=path.parent)
    return [np.load(file.replace(".npy", "-out.npy")) for file in files]


def draw_pixels(model, n):
    shape = (n, *model.input_shape)
    return np.random.default_rng(n).integers(0, 256, shape, np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("fold", [True, False])
def test_artefact_runs_in_a_process_with_jax_only(tmp_path, fold):
    pytest.importorskip("torch")
    model = trained_model("test_resnet", num_classes=5)
    report = export(model, tmp_path / "net.stablehlo", options=ExportOptions(fold=fold))
    assert report.format == "stablehlo"
    batches = [np.asarray(normalize_pixels(model, draw_pixels(model, n))) for n in (1, 5)]
    for logits, images in zip(run_without_resflax(report.path, batches), batches, strict=True):
        expected = torch_logits(model.spec, model.variables, images)
        assert logits.dtype == np.float32
        assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.slow
def test_uint8_artefact_maps_pixels_to_probabilities(tmp_path):
    pytest.importorskip("torch")
    model = trained_model("cifar_resnet8", channels=1, size=(8, 12))
    report = export(model, tmp_path / "net.stablehlo", options=ExportOptions(uint8=True))
    pixels = draw_pixels(model, 3)
    (probabilities,) = run_without_resflax(report.path, [pixels])
    images = ((pixels / 255.0 - 0.4) / 0.2).astype(np.float32)
    expected = softmax(torch_logits(model.spec, model.variables, images).astype(np.float64))
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_every_kind_of_network_exports_without_custom_calls(name):
    spec = SPECS[name]
    model = trained_model(spec, size=(64, 64))
    exported = jax_export.deserialize(bytearray(export_stablehlo(model)))
    calls = set(re.findall(r"custom_call @(\w+)", exported.mlir_module()))
    assert calls <= {"shape_assertion"}
    assert exported.out_avals[0].shape[1:] == (10,)


@pytest.mark.parametrize(
    ("name", "axes", "size"),
    [
        ("cifar_resnet8", ["height", "width"], "53x53"),
        ("r3d_18", ["depth", "height", "width"], "26x53x53"),
    ],
)
def test_symbolic_artefact_takes_any_size(tmp_path, name, axes, size):
    model = trained_model(name, depths=(1, 1), widths=(8, 8), stem_width=8, num_classes=5)
    report = export(model, tmp_path / "net.stablehlo", options=ExportOptions(symbolic=True))
    images = [verification.images for verification in report.verifications]
    assert images == ["4 noise images", f"4 noise images of {size}"]
    description = json.loads((tmp_path / "net.stablehlo.json").read_text())["input"]
    assert description["shape"] == ["n", *axes, 3]
    assert [constraint.split(" >= ")[0] for constraint in description["constraints"]] == axes


def test_artefact_has_the_weights_once():
    model = trained_model("cifar_resnet8")
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model.variables))
    assert weights < len(export_stablehlo(model)) < weights + 50_000


def test_json_next_to_the_artefact_describes_the_model(tmp_path):
    model = trained_model("cifar_resnet8", channels=1, labels=("a", "b"), num_classes=2)
    export(model, tmp_path / "net.stablehlo")
    description = json.loads((tmp_path / "net.stablehlo.json").read_text())
    assert PretrainedConfig.from_json_dict(description["model"]) == model.config
    assert description["input"] == {
        "dtype": "float32",
        "shape": ["n", 32, 32, 1],
        "normalized": True,
    }
    assert description["output"] == "logits"


def test_normalize_equals_the_preprocessing(tmp_path):
    model = trained_model("cifar_resnet8")
    pixels = draw_pixels(model, 1)
    model = model._replace(
        config=model.config._replace(
            preprocess=type(model.preprocess)(
                size=(32, 32), crop_pct=1.0, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)
            )
        )
    )
    expected = model.preprocess(pixels[0])
    np.testing.assert_allclose(normalize_pixels(model, pixels)[0], expected, atol=1e-6)
