"""What the configs beside weights mean, timm's and Transformers'."""

import json
import re

import pytest

from resflax import UserError
from resflax.nn import Spec
from resflax.weights import Preprocess
from resflax.weights.hub import read_config

# As `timm.models.save_for_hf` (timm 1.0.31) writes it.
TIMM = {
    "architecture": "test_resnet",
    "num_classes": 7,
    "num_features": 96,
    "global_pool": "avg",
    "model_args": {"num_classes": 7, "in_chans": 3, "global_pool": "avg"},
    "pretrained_cfg": {
        "tag": "r160_in1k",
        "custom_load": False,
        "input_size": [3, 160, 96],
        "fixed_input_size": False,
        "interpolation": "bilinear",
        "crop_pct": 0.95,
        "crop_mode": "squash",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.25, 0.3],
        "num_classes": 7,
        "pool_size": [5, 5],
        "first_conv": "conv1.0",
        "classifier": "fc",
    },
}
# As `ResNetForImageClassification.save_pretrained` writes it.
TRANSFORMERS = {
    "architectures": ["ResNetForImageClassification"],
    "depths": [1, 2],
    "downsample_in_bottleneck": False,
    "downsample_in_first_stage": False,
    "embedding_size": 8,
    "hidden_act": "relu",
    "hidden_sizes": [32, 64],
    "id2label": {"10": "k", "0": "a", "1": "b", "2": "c", "3": "d", "4": "e", "5": "f",
                 "6": "g", "7": "h", "8": "i", "9": "j"},
    "layer_type": "bottleneck",
    "model_type": "resnet",
    "num_channels": 3,
    "torch_dtype": "float32",
}  # fmt: skip
IMAGE_PROCESSOR = {
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ConvNextFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 2,
    "size": {"shortest_edge": 64},
}


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"layer_type": "basic"}, {"block": "basic", "widths": (32, 64)}),
        ({"downsample_in_bottleneck": True}, {"block": "bottleneck_v1"}),
        ({"id2label": {}, "num_labels": 5}, {"num_classes": 5}),
    ],
)
def test_the_fields_of_a_config_of_transformers(tmp_path, changes, fields):
    (tmp_path / "config.json").write_text(json.dumps({**TRANSFORMERS, **changes}))
    spec = Spec((1, 2), (8, 16), stem_width=8, num_classes=11)
    assert read_config(tmp_path).spec == spec.override(**fields)
    assert read_config(tmp_path).preprocess == Preprocess()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "there is no config.json in "),
        ("no JSON", "config.json is no JSON: "),
        ([1], "config.json holds a list: expected a dictionary"),
        ({}, "the config names no architecture: expected timm's or Transformers' ResNet"),
        ({"model_type": "vit"}, "the config names no architecture"),
        ({"architecture": "vit_base_patch16_224"}, "unknown model 'vit_base_patch16_224'"),
        ({"architecture": 5}, "config.json is no config of a ResNet: "),
        ({**TIMM, "model_args": {"layers": [1]}}, "unknown field 'layers' of a spec"),
        ({**TIMM, "model_args": {"global_pool": "max"}}, "global_pool is 'max': expected 'avg'"),
        ({**TIMM, "model_args": None, "global_pool": "catavgmax"}, "global_pool is 'catavgmax'"),
        ({**TIMM, "pretrained_cfg": {"interpolation": "random"}}, "interpolation 'random'"),
        ({**TIMM, "pretrained_cfg": {"crop_mode": "border"}}, "unknown crop_mode 'border'"),
        ({**TIMM, "pretrained_cfg": {"crop_pct": 0}}, "are no part of an image"),
        ({**TIMM, "pretrained_cfg": {"input_size": 224}}, "config.json is no config of a ResNet"),
        ({**TRANSFORMERS, "hidden_act": "gelu"}, "another activation or an extra stride"),
        ({**TRANSFORMERS, "downsample_in_first_stage": True}, "another activation or an extra"),
        ({"model_type": "resnet"}, "config.json is no config of a ResNet: KeyError('hidden_sizes'"),
        ({**TRANSFORMERS, "depths": [1]}, "differ in length"),
    ],
)
def test_a_config_that_means_no_such_network_is_one_line(tmp_path, config, message):
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=re.escape(message)) as e:
        read_config(tmp_path)
    assert "\n" not in str(e.value)
