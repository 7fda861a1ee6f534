"""config.json of pretrained weights, in timm's and Transformers' format."""

import json
import re

import pytest
from helpers.weight_files import TIMM, TRANSFORMERS

from resflax import UserError
from resflax.nn import Spec
from resflax.weights import Preprocess
from resflax.weights.pretrained_config import read_config


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"layer_type": "basic"}, {"block": "basic", "widths": (32, 64)}),
        ({"downsample_in_bottleneck": True}, {"block": "bottleneck_v1"}),
        ({"id2label": {}, "num_labels": 5}, {"num_classes": 5}),
    ],
)
def test_transformers_config_fields_map_to_the_spec(tmp_path, changes, fields):
    (tmp_path / "config.json").write_text(json.dumps({**TRANSFORMERS, **changes}))
    spec = Spec((1, 2), (8, 16), stem_width=8, num_classes=11)
    assert read_config(tmp_path).spec == spec.override(**fields)
    assert read_config(tmp_path).preprocess == Preprocess()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "file not found: "),
        ("not JSON", "config.json is not valid JSON: "),
        ([1], "config.json contains a list: expected a JSON object"),
        ({}, "the config has no architecture: expected a timm or Transformers ResNet"),
        ({"model_type": "vit"}, "the config has no architecture"),
        ({"architecture": "vit_base_patch16_224"}, "unknown model 'vit_base_patch16_224'"),
        ({"architecture": 5}, "unknown model 5: did you mean"),
        ({**TIMM, "model_args": {"layers": [1]}}, "unknown field 'layers' of a spec"),
        ({**TIMM, "model_args": {"global_pool": "max"}}, "global_pool is 'max': expected 'avg'"),
        ({**TIMM, "model_args": None, "global_pool": "catavgmax"}, "global_pool is 'catavgmax'"),
        ({**TIMM, "pretrained_cfg": {"interpolation": "random"}}, "interpolation 'random'"),
        ({**TIMM, "pretrained_cfg": {"crop_mode": "border"}}, "unknown crop_mode 'border'"),
        ({**TIMM, "pretrained_cfg": {"crop_pct": 0}}, "crop_pct is 0: expected a number above 0"),
        (
            {**TIMM, "pretrained_cfg": {"input_size": 224}},
            "config.json is not a valid ResNet config",
        ),
        ({**TRANSFORMERS, "hidden_act": "gelu"}, "expected hidden_act 'relu'"),
        ({**TRANSFORMERS, "downsample_in_first_stage": True}, "downsample_in_first_stage false"),
        ({"model_type": "resnet"}, "is not a valid ResNet config: KeyError('hidden_sizes'"),
        ({**TRANSFORMERS, "depths": [1]}, "differ in length"),
    ],
)
def test_invalid_config_raises_a_one_line_error(tmp_path, config, message):
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=re.escape(message)) as e:
        read_config(tmp_path)
    assert "\n" not in str(e.value)
