"""The config of a run, and what it builds."""

import json
import math
from typing import Any

import jax
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from resflax.data.augment import Augment, Mix, make_augment, make_mix
from resflax.data.augment.splits import Splits, make_splits
from resflax.nn import ResNet
from resflax.nn.functions import import_function
from resflax.nn.spec_json import to_json
from resflax.train.config_keys import KEYS
from resflax.zoo import create_model

# Prefixes of keys that do not change the result of a run: they may differ when it is resumed.
RESUMABLE_KEYS = (
    "parallel",
    "mesh.",
    "data.data_dir",
    "data.num_workers",
    "data.placement",
    "checkpoint_",
    "log_to",
    "log_histograms_every_steps",
    "profile_steps",
    "ensemble.member_devices",
    "ensemble.method",
)
# Keys that can be raised to continue a finished run, with the number that 0 stands for.
INCREASABLE_KEYS = {"epochs": 0.0, "max_steps": math.inf}


def default_config() -> ConfigDict:
    """Returns all keys with their defaults; a recipe in `configs/` changes some of them."""
    config = ConfigDict()
    for key, row in KEYS.items():
        *groups, name = key.split(".")
        group = config
        for part in groups:
            if part not in group:
                group[part] = ConfigDict()
            group = group[part]
        group[name] = row.default if row.kind is None else placeholder(row.kind)
    return config.lock()


def to_json_dict(config: ConfigDict) -> dict[str, Any]:
    """Returns a config as JSON values, with functions in `config.spec` as "module:name".

    >>> to_json_dict(ConfigDict({"a": (1, 2), "b": {"c": None}}))
    {'a': [1, 2], 'b': {'c': None}}
    """
    values = config.to_dict()
    if "spec" in values:
        values["spec"] = to_json(values["spec"])
    return dict(json.loads(json.dumps(values)))


def spec_overrides(config: ConfigDict) -> dict[str, Any]:
    """Returns the fields of the spec that a config sets. Functions, "module:name", are imported."""
    return {
        key: _import_functions(value) for key, value in config.spec.items() if value is not None
    }


def _import_functions(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_import_functions, value))
    return import_function(value) if isinstance(value, str) and ":" in value else value


def build_model(config: ConfigDict, num_classes: int | None = None) -> ResNet:
    """Builds the model that a config names, by default with the number of classes of its name."""
    overrides = spec_overrides(config)
    if num_classes is not None:
        overrides["num_classes"] = num_classes
    return create_model(
        config.model, dtype=config.dtype, scan=config.scan, remat=config.remat, **overrides
    )


def crop_kind(config: ConfigDict) -> str:
    """Returns how training images are cropped, a row of `CROPS`."""
    chosen: str = config.data.train_crop
    if chosen == "auto":
        return "inception" if config.data.image_size else "none"
    return chosen


def build_augment(config: ConfigDict) -> Augment | None:
    """Builds the augmentation of a config; None if there is none."""
    return make_augment(**augment_settings(config))


def build_splits(config: ConfigDict) -> Splits | None:
    """Builds the copies of each example of a config; None if there is one."""
    return make_splits(config.data.aug_splits, augment_settings(config))


def augment_settings(config: ConfigDict) -> dict[str, Any]:
    """Returns the arguments of `make_augment`."""
    data = config.data
    return dict(
        pad_crop=data.pad_crop,
        inception_crop=(
            (*data.crop_scale, *data.crop_ratio)
            if not data.image_size and crop_kind(config) == "inception"
            else ()
        ),
        flip="alternating" if data.alternating_flip else "random" if data.flip else "none",
        rand_augment=data.rand_augment,
        auto_augment=data.auto_augment,
        color_jitter=data.color_jitter,
        grayscale=data.grayscale,
        gaussian_blur=data.gaussian_blur,
        solarize=data.solarize,
        random_erasing=data.random_erasing,
        cutout=data.cutout,
        shift=data.shift,
        noise=data.noise,
        mask=data.mask,
    )


def build_mix(config: ConfigDict, mixup: float | jax.Array | None = None) -> Mix | None:
    """Builds mixup and CutMix of a config; None if there are none.

    `mixup` replaces `data.mixup`.
    """
    data = config.data
    return make_mix(
        mixup=data.mixup if mixup is None else mixup,
        cutmix=data.cutmix,
        mode=data.mixup_mode,
        probability=data.mixup_prob,
        switch_probability=data.mixup_switch_prob,
    )
