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
        ({}, "config.json: no model: expected the config of a ResNet of timm or Transformers"),
        (
            {"model_type": "vit"},
            "config.json: model_type is 'vit': expected the config of a ResNet",
        ),
        ({"architecture": "vit_base_patch16_224"}, "unknown model 'vit_base_patch16_224'"),
        ({"architecture": 5}, "unknown model 5: expected one such as"),
        ({**TIMM, "model_args": {"layers": [1]}}, "unknown field 'layers' of a spec"),
        ({**TIMM, "model_args": {"global_pool": "fast"}}, "global_pool is 'fast': expected one"),
        ({**TIMM, "model_args": None, "global_pool": ""}, "global_pool is '': expected one of avg"),
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


LETTERS = ("a", "b", "c", "d", "e", "f", "g")


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({}, ()),
        ({"label_names": [*LETTERS]}, LETTERS),
        # By label; JSON's keys are strings, which sort differently from numbers.
        ({"num_classes": 11, "label_names": {str(i): f"n{i}" for i in (10, *range(10))}},
         tuple(f"n{i}" for i in range(11))),
        ({"pretrained_cfg": TIMM["pretrained_cfg"] | {"label_names": [*LETTERS]}}, LETTERS),
        ({"label_names": [*LETTERS], "label_descriptions": {"b": "bear", "z": "zebra"}},
         ("a", "bear", *LETTERS[2:])),
    ],
)  # fmt: skip
def test_timm_config_names_the_classes(tmp_path, changes, labels):
    (tmp_path / "config.json").write_text(json.dumps({**TIMM, "num_classes": 7, **changes}))
    assert read_config(tmp_path).labels == labels


def test_placeholder_names_of_transformers_are_no_names(tmp_path):
    names = {str(i): f"LABEL_{i}" for i in range(11)}
    (tmp_path / "config.json").write_text(json.dumps({**TRANSFORMERS, "id2label": names}))
    config = read_config(tmp_path)
    assert (config.labels, config.spec.num_classes) == ((), 11)


def test_gray_timm_config_keeps_its_preprocessing(tmp_path):
    changes = {
        "input_size": [1, 8, 12],
        "mean": [0.3],
        "std": [0.2],
        "crop_pct": 1.0,
        "crop_mode": "squash",
        "interpolation": "bilinear",
    }
    config = {**TIMM, "pretrained_cfg": TIMM["pretrained_cfg"] | changes}
    config["model_args"] = TIMM["model_args"] | {"in_chans": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = read_config(tmp_path)
    assert read.channels == 1
    assert read.preprocess == Preprocess(
        size=(8, 12),
        mean=(0.3,),
        std=(0.2,),
        crop_pct=1.0,
        interpolation="bilinear",
        crop_mode="squash",
    )
