"""Configs, arrays and assertions shared by the tests of resflax.weights."""

import json

import ml_dtypes
import numpy as np
import pytest

from helpers.networks import randomized
from helpers.parity_inputs import draw_array
from resflax import UserError, get_spec
from resflax.weights import load_file, save_file, to_torch
from resflax.weights.shapes import variable_shapes

# As written by `timm.models.save_for_hf` (timm 1.0.31).
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
# As written by `ResNetForImageClassification.save_pretrained`.
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
# One array of each dtype, with scalar and empty shapes.
ARRAYS = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "half": np.array([[1.5], [-2]], np.float16),
    "brain": np.array([1.5, -3e38], ml_dtypes.bfloat16),
    "double": np.array([np.pi]),
    "count": np.array(2**40, np.int64),
    "none": np.zeros((0, 3), np.float32),
    "flags": np.array([True, False]),
    "bytes": np.array([0, 255], np.uint8),
}


def state_of(spec, layout=None, channels=3):
    """Returns a state dict of a network, drawn by the names of its arrays."""
    state = to_torch(spec, randomized(variable_shapes(spec, channels)), layout=layout)
    return {key: draw_array(key, array.shape) for key, array in state.items()}


def assert_same(actual, expected):
    """Asserts equal names, dtypes, shapes and bytes."""
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (array.dtype, array.shape), name
        assert actual[name].tobytes() == array.tobytes(), name


def load_error(path):
    """Returns the one-line error of `load_file(path)`."""
    with pytest.raises(UserError) as e:
        load_file(path)
    message = str(e.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def write_timm_folder(folder, *, labels=(), classes=None, channels=3):
    """Writes `cifar_resnet8` with random weights in timm's layout, with `TIMM`'s preprocessing.

    The images are 20 pixels high and 16 wide.
    """
    classes = len(labels) if classes is None else classes
    spec = get_spec("cifar_resnet8").override(num_classes=classes)
    pretrained = TIMM["pretrained_cfg"] | {"input_size": [channels, 20, 16]}
    pretrained |= {key: TIMM["pretrained_cfg"][key][:channels] for key in ("mean", "std")}
    config = {**TIMM, "architecture": "cifar_resnet8", "num_classes": classes}
    config |= {"label_names": list(labels), "pretrained_cfg": pretrained}
    config["model_args"] = {"num_classes": classes, "in_chans": channels}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    arrays = to_torch(spec, randomized(variable_shapes(spec, channels)))
    save_file(folder / "model.safetensors", arrays)
