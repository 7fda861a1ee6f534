"""Folders of config.json and model.safetensors in the layouts of timm and Transformers."""

import json
from pathlib import Path
from typing import Any

from resflax.data.class_names import IMAGENET_CLASSES
from resflax.errors import UserError
from resflax.export.timm_names import find_timm_model, inference_spec, zoo_name
from resflax.export.trained_model import TrainedModel
from resflax.nn import Spec
from resflax.nn.fields import check_named
from resflax.weights import PretrainedConfig, to_torch
from resflax.weights.files import save_file
from resflax.weights.layouts import default_layout
from resflax.weights.pretrained_config import RESAMPLING, read_config

CONFIG, WEIGHTS, PROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
# Key of config.json for what the other keys cannot say.
RESFLAX = "resflax"


def timm_config(model: TrainedModel, license_name: str = "") -> dict[str, Any]:
    """Returns the config.json of timm: architecture, preprocessing and class names.

    A network that timm does not have is named as in the zoo; timm cannot build it.
    """
    spec, preprocess = model.spec, model.preprocess
    timm_model = find_timm_model(spec)
    architecture, arguments = timm_model or (zoo_name(spec) or RESFLAX, {})
    if model.config.channels != 3:
        arguments = {**arguments, "in_chans": model.config.channels}
    stem = "stem.conv" if spec.preact else "conv1"
    if spec.stem in ("deep", "tiered", "rs"):
        stem = "stem.conv1" if spec.preact else "conv1.0"
    config = {
        "architecture": architecture,
        "num_classes": spec.num_classes,
        "num_features": spec.features[-1].channels,
        "global_pool": spec.pooling,
        "label_names": list(model.config.labels),
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [model.config.channels, *preprocess.size],
            "fixed_input_size": False,
            "interpolation": preprocess.interpolation,
            "crop_pct": preprocess.crop_pct,
            "crop_mode": preprocess.crop_mode,
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "num_classes": spec.num_classes,
            "pool_size": None,
            "first_conv": stem,
            "classifier": "head.fc" if spec.preact else "fc",
            "license": license_name or "unknown",
        },
    }
    return {key: value for key, value in config.items() if value not in ([], {})}


def transformers_config(model: TrainedModel) -> dict[str, Any]:
    """Returns the config.json of Transformers' `ResNetForImageClassification`."""
    spec = model.spec
    expansion = 1 if spec.block == "basic" else 4
    return {
        "architectures": ["ResNetForImageClassification"],
        "model_type": "resnet",
        "depths": list(spec.depths),
        "hidden_sizes": [expansion * width for width in spec.widths],
        "embedding_size": spec.stem_width,
        "layer_type": "basic" if spec.block == "basic" else "bottleneck",
        "downsample_in_bottleneck": spec.block == "bottleneck_v1",
        "downsample_in_first_stage": False,
        "hidden_act": "relu",
        "num_channels": model.config.channels,
        "id2label": {str(i): name for i, name in enumerate(model.class_names)},
        "label2id": {name: i for i, name in enumerate(model.class_names)},
        "problem_type": "single_label_classification",
    }


def transformers_processor(model: TrainedModel) -> dict[str, Any]:
    """Returns the preprocessor_config.json of Transformers' image processor for ResNets."""
    preprocess = model.preprocess
    numbers = {name: number for number, name in RESAMPLING.items()}
    return {
        "image_processor_type": "ConvNextImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": min(preprocess.size)},
        "crop_pct": preprocess.crop_pct,
        "resample": numbers[preprocess.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }


def check_transformers(spec: Spec) -> None:
    """Checks that Transformers' ResNet has the architecture.

    Raises:
      UserError: if it has not.
    """
    plain = Spec(spec.depths, spec.widths, spec.block, stem_width=spec.stem_width)
    blocks = ("basic", "bottleneck", "bottleneck_v1")
    if inference_spec(spec) != inference_spec(plain) or spec.block not in blocks:
        raise UserError(
            "Transformers' ResNet has no such architecture: expected a ResNet like resnet18 or"
            " resnet50 (7x7 stem, shortcut B, batch norm), use --format=timm"
        )


def write_timm(model: TrainedModel, folder: Path, license_name: str = "") -> None:
    """Writes config.json and model.safetensors in timm's layout."""
    layout = default_layout(model.spec)
    layout = layout if layout.startswith("timm_") else "timm"
    write_weights(model, folder, layout)
    write_config(timm_config(model, license_name), folder, model.config)


def write_transformers(model: TrainedModel, folder: Path) -> None:
    """Writes config.json, preprocessor_config.json and model.safetensors of Transformers."""
    write_weights(model, folder, "huggingface")
    _write_json(folder / PROCESSOR, transformers_processor(model))
    write_config(transformers_config(model), folder, model.config)


def write_weights(model: TrainedModel, folder: Path, layout: str) -> None:
    """Writes model.safetensors."""
    check_named(model.spec.own_parts, "programs that read the folder have no such part")
    arrays = to_torch(model.spec, model.variables, layout=layout)
    save_file(folder / WEIGHTS, arrays)


def write_config(values: dict[str, Any], folder: Path, config: PretrainedConfig) -> None:
    """Writes config.json; where it does not describe `config` in full, the key "resflax" does.

    Such as for a network that timm does not have, or settings that affect training only.
    """
    _write_json(folder / CONFIG, values)
    try:
        is_complete = read_config(folder) == config
    except UserError:
        is_complete = False
    # Without names, the readers would take 1000 classes for those of ImageNet.
    looks_like_imagenet = config.spec.num_classes == IMAGENET_CLASSES and not config.labels
    if not is_complete or looks_like_imagenet:
        _write_json(folder / CONFIG, {**values, RESFLAX: config.to_json_dict()})


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
