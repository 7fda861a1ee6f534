"""ImageNet's class names, and the models that get them."""

import json

import jax
import numpy as np
import pytest

from resflax.weights import imagenet_classes, load_pretrained, read_weights, save_file, to_torch
from resflax.weights.shapes import variable_shapes
from resflax.zoo import get_spec


def test_class_names_are_those_of_torchvision():
    meta = pytest.importorskip("torchvision.models._meta")
    assert imagenet_classes() == tuple(meta._IMAGENET_CATEGORIES)


def write_file(path, **fields):
    spec = get_spec("test_resnet").override(**fields)
    variables = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), variable_shapes(spec))
    save_file(path / "model.safetensors", to_torch(spec, variables))
    return path


def test_models_with_1000_classes_have_the_names_of_imagenet(tmp_path):
    path = write_file(tmp_path)
    file = read_weights(path / "model.safetensors", "test_resnet")
    assert file.config.labels == imagenet_classes()
    assert file.source.endswith("; class names of ImageNet-1k")
    config = {"architecture": "test_resnet.r160_in1k", "num_classes": 1000}
    (path / "config.json").write_text(json.dumps(config))
    loaded = load_pretrained(path)
    assert loaded.classes == imagenet_classes()
    assert loaded.source.endswith("; class names of ImageNet-1k")
    assert load_pretrained(path, num_classes=5).classes == ()
    named = {**config, "label_names": [f"n{i}" for i in range(1000)]}
    (path / "config.json").write_text(json.dumps(named))
    assert load_pretrained(path).classes == tuple(named["label_names"])
    assert "ImageNet" not in load_pretrained(path).source


def test_models_with_other_numbers_of_classes_have_no_names(tmp_path):
    weights = read_weights(write_file(tmp_path, num_classes=999), "test_resnet")
    assert (weights.config.labels, weights.config.spec.num_classes) == ((), 999)
    weights = read_weights(write_file(tmp_path, num_classes=0), "test_resnet")
    assert weights.config.labels == ()
