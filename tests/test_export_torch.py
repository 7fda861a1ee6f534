"""Folders in the layouts of timm and Transformers."""

import json

import numpy as np
import pytest
import safetensors
from helpers.trained_models import trained_model

from resflax import UserError, get_spec, list_models, load_pretrained
from resflax.export import export
from resflax.export.timm_names import find_timm_model, inference_spec, zoo_name
from resflax.weights import load_file, read_weights
from resflax.weights.torch_reference import torch_logits
from resflax.zoo.registry import SPECS

TINY = {"depths": (1, 1, 1, 1), "widths": (8, 16, 24, 32)}
# Name of the base, fields of the spec, channels, and the arguments that timm needs.
FAMILIES = {
    "timm's name": ("test_resnet", {"num_classes": 3}, 3, {}),
    "gray": ("resnet10t", {"widths": (8, 8, 8, 16), "num_classes": 2}, 1, {"channels"}),
    "basic": ("resnet18", TINY, 3, {"layers", "channels"}),
    "dilated": ("resnet18", {**TINY, "output_stride": 8}, 3, {"output_stride"}),
    "bottleneck": ("resnet50d", {**TINY, "stem_width": 32}, 3, {"layers", "stem_width"}),
    "groups": ("resnext50_32x4d", {**TINY, "groups": 2, "base_width": 64}, 3, {"cardinality"}),
    "se": ("seresnet50", TINY, 3, {"layers"}),
    "eca": ("ecaresnet26t", {"widths": (8, 16, 24, 32)}, 3, {"channels"}),
    "blur": ("resnetblur18", TINY, 3, {"layers"}),
    "rs": ("resnetrs50", TINY, 3, {"layers"}),
    "preact": ("resnetv2_18", TINY, 3, {"layers"}),
    "normalizer-free": ("nf_resnet26", TINY, 3, {"depths"}),
    "both poolings": ("resnet18", {**TINY, "pooling": "catavgmax"}, 3, {"global_pool"}),
    "preact bottleneck": ("resnetv2_50d", {**TINY, "stem_width": 16}, 1, {"stem_chs"}),
}
NOT_IN_TIMM = ("cifar_resnet8", "plain18", "resnet50_v1", "wrn16_4")


def assert_equal_logits(actual, expected):
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


def noise(model, n=2):
    shape = (n, *model.input_shape)
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def test_names_of_timm_are_found_without_arguments():
    timm = pytest.importorskip("timm")
    names = {*timm.list_models()}
    for name in list_models():
        found = find_timm_model(get_spec(name).override(num_classes=3, dropout=0.1))
        if name in names:
            assert (found.name, found.arguments) == (name, {})
        else:
            assert found is None or found.arguments


def test_zoo_name_is_the_inverse_of_get_spec():
    for name in (*SPECS, "cifar_resnet8", "cifar_preact_resnet29", "wrn22_3"):
        found = zoo_name(get_spec(name).override(num_classes=3))
        assert inference_spec(get_spec(found)) == inference_spec(get_spec(name))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_timm_loads_the_folder_with_equal_logits(tmp_path, family):
    timm, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    name, fields, channels, arguments = FAMILIES[family]
    model = trained_model(name, channels=channels, **fields)
    report = export(model, tmp_path / "net")
    assert [v.reader.split()[0] for v in report.verifications] == ["resflax", "timm"]
    config = json.loads((tmp_path / "net" / "config.json").read_text())
    assert {*arguments} <= {*config.get("model_args", {})}
    net = timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True).eval()
    images = noise(model)
    with torch.inference_mode():
        logits = net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    assert logits.shape == (2, model.spec.num_classes)
    assert_equal_logits(logits, torch_logits(model.spec, model.variables, images))
    data = timm.data.resolve_model_data_config(net)
    assert tuple(data["input_size"]) == (channels, 32, 32)
    assert tuple(data["mean"]) == model.preprocess.mean
    assert (data["crop_pct"], data["interpolation"]) == (0.9, "bilinear")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet50_v1"])
def test_transformers_loads_the_folder_with_equal_logits(tmp_path, name):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    labels, fields = ("ant", "bee", "cat"), {**TINY, "num_classes": 3}
    model = trained_model(name, channels=1, labels=labels, **fields)
    export(model, tmp_path / "net", format="transformers")
    net = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "net").eval()
    images = noise(model)
    with torch.inference_mode():
        logits = net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).logits.numpy()
    assert_equal_logits(logits, torch_logits(model.spec, model.variables, images))
    assert net.config.id2label == dict(enumerate(labels))


def test_transformers_layout_needs_its_architecture(tmp_path):
    for name in ("resnet18d", "seresnet18", "cifar_resnet8", "resnetv2_18"):
        with pytest.raises(UserError, match="Transformers' ResNet has no such architecture"):
            export(trained_model(name, **TINY) if name[0] != "c" else trained_model(name),
                   tmp_path / "net", format="transformers")  # fmt: skip
    assert [*tmp_path.iterdir()] == []


@pytest.mark.slow
def test_preprocessing_that_transformers_lacks_comes_back(tmp_path):
    model = trained_model("resnet18", preprocess={"size": (32, 48)}, **TINY)
    report = export(model, tmp_path / "net", format="transformers")
    assert "resizes and crops in another way" in report.notes[0]
    assert load_pretrained(tmp_path / "net").preprocess == model.preprocess


def test_config_of_a_timm_model_needs_no_further_key(tmp_path):
    model = trained_model("test_resnet", labels=tuple("abcde"), num_classes=5)
    export(model, tmp_path / "net")
    config = json.loads((tmp_path / "net" / "config.json").read_text())
    assert config["architecture"] == "test_resnet"
    assert config["label_names"] == [*"abcde"]
    assert config["pretrained_cfg"]["classifier"] == "fc"
    assert "resflax" not in config
    with safetensors.safe_open(tmp_path / "net" / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("name", NOT_IN_TIMM)
def test_network_that_timm_lacks_comes_back(tmp_path, name):
    fields = {"widths": (8, 8, 8, 8)} if name in ("plain18", "resnet50_v1") else {}
    model = trained_model(name, channels=1, labels=("x", "y"), num_classes=2, **fields)
    model = model._replace(
        config=model.config._replace(spec=model.spec.override(dropout=0.25, zero_init=False))
    )
    report = export(model, tmp_path / "net")
    assert "timm has no such architecture" in report.notes[0]
    config, variables, *_ = read_weights(tmp_path / "net")
    assert config == model.config
    for old, new in zip(*(sorted(map(str, t["params"])) for t in (variables, model.variables)),
                        strict=True):  # fmt: skip
        assert old == new
    state = load_file(tmp_path / "net")
    assert {"conv1.weight", "stem.conv.weight"} & {*state}
