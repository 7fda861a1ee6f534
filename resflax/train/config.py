"""A run as data: every key there is, its default, and what values it may have."""

import dataclasses
import math
import types
import typing
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from resflax.errors import UserError, unknown
from resflax.nn import Spec


def default_config() -> ConfigDict:
    """All keys with their defaults; a recipe in `configs/` changes some of them."""
    config = ConfigDict(
        {
            "model": "cifar_resnet20",  # a name of `list_models()`
            "pretrained": "",  # weights to begin with: a file, a folder, owner/name of the Hub
            "dtype": "float32",  # of the computation; parameters stay float32
            "scan": placeholder(
                bool
            ),  # compile a stage's blocks once; not set: as the model has it
            "remat": False,  # keep only the blocks' inputs for the backward pass
            "dataset": "digits",  # a name of TensorFlow Datasets
            "seed": 0,
            "epochs": 10,
            "batch_size": 128,  # over all devices
            "grad_accum_steps": 1,  # micro-batches that a batch is cut into
            "optimizer": "sgd",  # or "adamw", "lars", "lamb"
            "learning_rate": 0.1,  # the largest
            "schedule": "cosine",  # or "constant", "step", "polynomial", "{cosine,linear}_onecycle"
            "warmup_epochs": 0.0,  # of a one-cycle: where its peak is; 0 for its own choice
            "decay_epochs": (),  # where the "step" schedule falls
            "decay_rate": 0.1,  # and by how much
            "polynomial_power": 1.0,  # of the "polynomial" schedule
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 1e-4,
            "decay_mask": "kernels",  # or "all"; LARS and LAMB scale the steps of the same
            "trust_coefficient": 0.001,  # of LARS
            "grad_clip_norm": 0.0,  # of the gradient; 0 for never
            "label_smoothing": 0.0,
            "ema_decay": 0.0,  # of the average of the weights, which is evaluated; 0 for none
            "precise_bn_batches": 0,  # for batch statistics at each evaluation; 0: running ones
            "parallel": "pmap",  # or "mesh"
            "mesh": {"fsdp": 1},  # devices of a mesh that share one copy of the state
            "log_every_steps": 10,
            "eval_every_epochs": 1,
            "checkpoint_every_steps": 0,  # 0 for never by steps
            "checkpoint_every_minutes": 10.0,  # since the last; 0 for never by time
            "checkpoint_max_to_keep": 3,  # the last ones; the best is kept as well
            "on_nonfinite": "stop",  # or "skip", which drops the update
            "max_consecutive_nonfinite": 10,  # so many drops in a row end the run
            "data": {
                "data_dir": "",  # where prepared sets lie; "" is TFDS's own choice
                "image_size": 0,  # 0: images of one size, in memory; N: of any, cut to NxN
                "channels": 0,  # 1 or 3 to convert all images; 0: as they are, all alike
                "on_bad_example": "raise",  # or "skip", which counts and reports
                "placement": "auto",  # of the set: "host", "device"; auto: small ones on devices
                "num_workers": 0,  # processes that read images of any size; 0 for threads
                "mean": (),  # of the channels, from 0 to 1; (): those of the weights or the set
                "std": (),
                "pad_crop": 0,  # pixels of padding before a random crop; 0 for none
                "inception_crop": False,  # crop 8 to 100 % and stretch it
                "flip": False,  # mirror at random
                "alternating_flip": False,  # or in every other epoch
                "rand_augment": (),  # layers and magnitude, as (2, 9)
                "color_jitter": (),  # brightness, contrast, saturation, hue: (0.4, 0.4, 0.4, 0.1)
                "random_erasing": 0.0,  # the probability of random erasing
                "cutout": 0,  # the side of a square that is blacked out, in pixels
                "mixup": 0.0,  # alpha; 0 for none
                "cutmix": 0.0,
            },
        }
    )
    # Fields of the model's spec; one that is not set is the named model's own.
    config.spec = ConfigDict(
        {
            f.name: placeholder(_kind(f.type))
            for f in dataclasses.fields(Spec)
            if f.name not in ("num_classes", "pruned")
        }
    )
    return config.lock()


def _kind(annotation: Any) -> type:
    """The type that a flag or a config file gives a field: of several, the first."""
    if isinstance(annotation, types.UnionType):
        annotation = typing.get_args(annotation)[0]
    return typing.get_origin(annotation) or annotation


def spec_overrides(config: ConfigDict) -> dict[str, Any]:
    """The fields of the spec that are set."""
    return {key: value for key, value in config.spec.items() if value is not None}


def flat_keys(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Every value by its dotted key.

    >>> flat_keys(ConfigDict({"a": 1, "b": {"c": 2}}))
    {'a': 1, 'b.c': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= flat_keys(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


# What a value must be, in words and as a test.
_POSITIVE = ("more than 0", lambda v: v > 0)
_COUNT = ("from 1 to 2**31 - 1", lambda v: 0 < v < 2**31)
_NOT_NEGATIVE = ("0 or more", lambda v: v >= 0)
RULES: dict[str, tuple[str, Any]] = {
    "seed": ("from 0 to 2**32 - 1", lambda v: 0 <= v < 2**32),
    "epochs": _COUNT,
    "batch_size": _COUNT,
    "grad_accum_steps": _COUNT,
    "learning_rate": _POSITIVE,
    "warmup_epochs": _NOT_NEGATIVE,
    "decay_epochs": (
        "rising epochs",
        lambda v: list(v) == sorted({*v}) and all(0 < e < 2**31 for e in v),
    ),
    "decay_rate": _POSITIVE,
    "polynomial_power": _POSITIVE,
    "momentum": ("from 0 to less than 1", lambda v: 0 <= v < 1),
    "weight_decay": _NOT_NEGATIVE,
    "trust_coefficient": _POSITIVE,
    "grad_clip_norm": _NOT_NEGATIVE,
    "label_smoothing": ("from 0 to less than 1", lambda v: 0 <= v < 1),
    "ema_decay": ("from 0 to less than 1", lambda v: 0 <= v < 1),
    "precise_bn_batches": ("from 0 to 2**31 - 1", lambda v: 0 <= v < 2**31),
    "mesh.fsdp": _COUNT,
    "log_every_steps": _COUNT,
    "eval_every_epochs": _COUNT,
    "checkpoint_every_steps": ("from 0 to 2**31 - 1", lambda v: 0 <= v < 2**31),
    "checkpoint_every_minutes": _NOT_NEGATIVE,
    "checkpoint_max_to_keep": ("2 or more: the last may be damaged", lambda v: 2 <= v < 2**31),
    "max_consecutive_nonfinite": _COUNT,
    "data.image_size": ("0, or from 8 to 4096", lambda v: v == 0 or 8 <= v <= 4096),
    "data.num_workers": ("from 0 to 1024", lambda v: 0 <= v <= 1024),
    "data.mean": ("numbers", lambda v: all(abs(x) < 1e6 for x in v)),
    "data.std": ("numbers of more than 0", lambda v: all(0 < x < 1e6 for x in v)),
    "data.pad_crop": _NOT_NEGATIVE,
}


def _check_type(key: str, value: Any, kind: type) -> None:
    if kind is type(None):  # a placeholder, whose type ml_collections keeps
        return
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or isinstance(value, bool) != (kind is bool):
        raise UserError(f"config.{key} is {value!r}: expected {kind.__name__}")
    if kind is float and not abs(value) < 3e38:  # nor NaN
        raise UserError(f"config.{key} is {value!r}: expected a number that float32 can hold")


def check_config(config: ConfigDict) -> None:
    """Raises `UserError` on a key that is unknown, missing, of a wrong type or out of range.

    Names (of models, datasets, optimisers, ...) are checked by the rooms that know them.
    """
    found, known = flat_keys(config), flat_keys(default_config())
    for key in found:
        if key not in known:
            raise unknown("config key", key, known)
    for key, default in known.items():
        if key not in found:
            raise UserError(f"config.{key} is missing: start from default_config()")
        _check_type(key, found[key], type(default))
    for key, (expected, is_right) in RULES.items():
        try:
            right = is_right(found[key])
        except TypeError:
            right = False
        if not right:
            raise UserError(f"config.{key} is {found[key]!r}: expected {expected}")
    if config.warmup_epochs > config.epochs:
        raise UserError(
            f"config.warmup_epochs is {config.warmup_epochs}: expected at most epochs,"
            f" {config.epochs}"
        )
    if (
        config.schedule == "step"
        and min(config.decay_epochs, default=math.inf) < config.warmup_epochs
    ):
        raise UserError(
            f"config.decay_epochs is {config.decay_epochs}: expected none before warmup_epochs,"
            f" {config.warmup_epochs}"
        )
