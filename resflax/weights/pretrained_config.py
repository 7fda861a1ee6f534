"""The config.json of pretrained weights, in timm's or Transformers' format."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

from resflax.errors import UserError
from resflax.nn import Spec
from resflax.nn.heads import POOLINGS
from resflax.weights.array_preprocess import ArrayPreprocess
from resflax.weights.preprocess import Preprocess, default_preprocess
from resflax.zoo import get_spec

# timm's model arguments that affect training only.
TRAINING_ARGUMENTS = ("drop_rate", "drop_path_rate", "drop_block_rate", "zero_init_last")
CLIP_FRAMES = 8  # of clips, whose length the preprocessing of frames does not say
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL's numbers


class PretrainedConfig(NamedTuple):
    """Architecture, preprocessing and class names of pretrained weights.

    Attributes:
      spec: the architecture, with the number of classes of the weights.
      channels: number of image channels.
      preprocess: the evaluation preprocessing.
      labels: class names; empty if they are not known.
    """

    spec: Spec
    channels: int
    preprocess: Preprocess
    labels: tuple[str, ...] = ()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape `(*space, channels)` of an example, after the preprocessing."""
        sides = (CLIP_FRAMES, *self.preprocess.sides)[-self.spec.dimensions :]
        return (*sides, self.channels)

    def to_json_dict(self) -> dict[str, Any]:
        """Returns the config as JSON values, as a checkpoint's metadata have it under "model"."""
        fields = {
            "spec": self.spec.to_json_dict(),
            "channels": self.channels,
            "preprocess": dataclasses.asdict(self.preprocess),
            "labels": self.labels,
        }
        return dict(json.loads(json.dumps(fields)))

    @classmethod
    def from_json_dict(
        cls,
        values: dict[str, Any],
        *,
        import_functions: bool = False,
        replacement: Spec | None = None,
    ) -> "PretrainedConfig":
        """Returns the config from the values of `to_json_dict`.

        Args:
          values: the values of all fields.
          import_functions: see `Spec.from_json_dict`; True only for a run's own files.
          replacement: see `Spec.from_json_dict`.

        Raises:
          UserError: if a value is invalid.
          KeyError, TypeError: if a field is missing or unknown.
        """
        preprocess = dict(values["preprocess"])
        sizes = (key for key in ("size", "mean", "std", "space") if key in preprocess)
        preprocess |= {key: tuple(preprocess[key]) for key in sizes}
        kind = ArrayPreprocess if "space" in preprocess else Preprocess
        return cls(
            Spec.from_json_dict(
                values["spec"], import_functions=import_functions, replacement=replacement
            ),
            values["channels"],
            kind(**preprocess),
            tuple(values["labels"]),
        )


def read_config(folder: Path, replacement: Spec | None = None) -> PretrainedConfig:
    """Reads the config.json in a folder, and Transformers' preprocessor_config.json.

    Args:
      folder: the folder.
      replacement: see `Spec.from_json_dict`.

    Raises:
      UserError: if config.json is missing or invalid, or the zoo does not have the architecture.
    """
    path = folder / "config.json"
    config = read_json(path)
    try:
        if "resflax" in config:  # written by `resflax export` where the other keys do not suffice
            return PretrainedConfig.from_json_dict(config["resflax"], replacement=replacement)
        if config.get("model_type") == "resnet":
            processor = folder / "preprocessor_config.json"
            return _from_transformers(config, read_json(processor) if processor.exists() else {})
        return _from_timm(config)
    except UserError as e:
        raise UserError(f"{path}: {e}") from e
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as e:
        raise UserError(f"{path} is not a valid ResNet config: {e!r}") from e


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      UserError: if the file is missing, or not a JSON object.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as e:
        raise UserError(f"file not found: {path}") from e
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from e
    except ValueError as e:
        raise UserError(f"{path} is not valid JSON: {e}") from e
    if not isinstance(content, dict):
        raise UserError(f"{path} contains a {type(content).__name__}: expected a JSON object")
    return content


def _from_timm(config: dict[str, Any]) -> PretrainedConfig:
    if "architecture" not in config:
        kind = f"model_type is {config['model_type']!r}" if "model_type" in config else "no model"
        raise UserError(f"{kind}: expected the config of a ResNet of timm or Transformers")
    spec = get_spec(config["architecture"])
    arguments = dict(config.get("model_args") or {})
    for name in TRAINING_ARGUMENTS:
        arguments.pop(name, None)
    pool = arguments.pop("global_pool", config.get("global_pool", "avg"))
    if pool not in POOLINGS:
        raise UserError(f"global_pool is {pool!r}: expected one of {', '.join(POOLINGS)}")
    channels = arguments.pop("in_chans", None)
    spec = spec.override(
        **{"num_classes": config.get("num_classes", 1000), "pooling": pool, **arguments}
    )
    pretrained = config.get("pretrained_cfg") or config
    default = default_preprocess(spec)
    input_size = pretrained.get("input_size", (3, *default.size))
    preprocess = Preprocess(
        size=(input_size[1], input_size[2]),
        crop_pct=_get_or(pretrained, "crop_pct", default.crop_pct),
        interpolation=_get_or(pretrained, "interpolation", default.interpolation),
        mean=tuple(pretrained.get("mean", default.mean)),
        std=tuple(pretrained.get("std", default.std)),
        crop_mode=pretrained.get("crop_mode", "center"),
    )
    labels = _class_names({**pretrained, **config})
    return PretrainedConfig(spec, channels or input_size[0], preprocess, labels)


def _class_names(config: dict[str, Any]) -> tuple[str, ...]:
    """Returns the class names of a timm config.

    "label_names" is a list, or a dict by label; "label_descriptions" maps these names, such as
    WordNet's identifiers, to readable ones.
    """
    names = config.get("label_names") or ()
    if not isinstance(names, dict | list | tuple):
        raise UserError(f"label_names is {names!r}: expected a list of class names")
    if isinstance(names, dict):
        names = [names[label] for label in sorted(names, key=int)]
    descriptions = config.get("label_descriptions") or {}
    return tuple(str(descriptions.get(name, name)) for name in names)


def _get_or(config: dict[str, Any], key: str, default: Any) -> Any:
    return default if config.get(key) is None else config[key]


def _from_transformers(config: dict[str, Any], processor: dict[str, Any]) -> PretrainedConfig:
    if config.get("hidden_act", "relu") != "relu" or config.get("downsample_in_first_stage"):
        raise UserError(
            "unsupported Transformers ResNet: expected hidden_act 'relu' and"
            " downsample_in_first_stage false"
        )
    bottleneck = config.get("layer_type", "bottleneck") == "bottleneck"
    sizes = config["hidden_sizes"]
    block = "bottleneck_v1" if config.get("downsample_in_bottleneck") else "bottleneck"
    labels = _transformers_labels(config)
    spec = Spec(
        depths=tuple(config["depths"]),
        widths=tuple(size // 4 if bottleneck else size for size in sizes),
        block=block if bottleneck else "basic",
        stem_width=config["embedding_size"],
        num_classes=len(config.get("id2label") or ()) or config.get("num_labels", 2),
    )
    default = default_preprocess(spec)
    size = processor.get("size") or {}  # a plain integer in older files
    size = size.get("shortest_edge", default.size[0]) if isinstance(size, dict) else size
    preprocess = Preprocess(
        size=(size, size),
        crop_pct=processor.get("crop_pct") or default.crop_pct,
        interpolation=RESAMPLING[processor.get("resample", 3)],
        mean=tuple(processor.get("image_mean", default.mean)),
        std=tuple(processor.get("image_std", default.std)),
    )
    return PretrainedConfig(spec, config.get("num_channels", 3), preprocess, labels)


def _transformers_labels(config: dict[str, Any]) -> tuple[str, ...]:
    """Returns the class names; none if they are Transformers' placeholders "LABEL_0" and so on."""
    names = config.get("id2label") or {}
    labels = tuple(names[key] for key in sorted(names, key=int))
    return () if labels == tuple(f"LABEL_{i}" for i in range(len(labels))) else labels
