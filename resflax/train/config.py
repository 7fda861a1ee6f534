"""The config of a run: every key, its default, and its valid values."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from resflax.data.augment import Augment, Mix, make_augment, make_mix
from resflax.data.eval_transform import INTERPOLATIONS
from resflax.data.source import ON_BAD_EXAMPLE
from resflax.distributed.engines import ENGINES, check_fsdp
from resflax.errors import UserError, unknown
from resflax.nn import BATCH_NORM_MODES, ResNet, Spec
from resflax.run.config_diff import flatten_config
from resflax.train.input_pipeline import PLACEMENTS
from resflax.train.nonfinite import ACTIONS
from resflax.train.optim import DECAY_MASKS, OPTIMIZERS
from resflax.train.schedules import SCHEDULES
from resflax.zoo import create_model

# Prefixes of keys that do not change the result of a run: they may differ when it is resumed.
RESUMABLE_KEYS = (
    "parallel",
    "mesh.",
    "data.data_dir",
    "data.num_workers",
    "data.placement",
    "checkpoint_",
)
# Keys that can be raised to continue a finished run.
INCREASABLE_KEYS = ("epochs",)


def default_config() -> ConfigDict:
    """Returns all keys with their defaults; a recipe in `configs/` changes some of them."""
    config = ConfigDict(
        {
            "model": "cifar_resnet20",  # a name of `list_models()`; "": that of the weights
            "pretrained": "",  # initial weights: a workdir, folder, file, or name of the Hub
            "reset_head": False,  # a new head even if the pretrained one has as many classes
            # Parameters to freeze: patterns such as "stem*,stage[12]*"; see resflax.train.freeze.
            "freeze": placeholder(object),
            "freeze_batch_norm": False,  # freeze scales, biases and statistics of all batch norms
            "batch_norm": "global",  # statistics: or "per_device", "ghost", "frozen"
            "ghost_batch_size": 32,  # examples per group of "ghost"
            "dtype": "float32",  # compute dtype; parameters stay float32
            "scan": placeholder(bool),  # compile a stage's blocks once; unset: the model's default
            "remat": False,  # store only the blocks' inputs for the backward pass
            "dataset": "digits",  # "digits", "folder:PATH", a name of TensorFlow Datasets
            "seed": 0,
            "epochs": 10,  # 0 evaluates pretrained weights
            "batch_size": 128,  # over all devices
            "grad_accum_steps": 1,  # number of micro-batches per batch
            "optimizer": "sgd",  # or "adamw", "lars", "lamb"
            "learning_rate": 0.1,  # peak of the schedule
            "head_learning_rate": 0.0,  # peak for the head; 0 for learning_rate
            "layer_decay": 1.0,  # factor of the learning rate per block, from the head down
            "schedule": "cosine",  # or "constant", "step", "polynomial", "{cosine,linear}_onecycle"
            "warmup_epochs": 0.0,  # for one-cycle: the epoch of the peak; 0 for 0.3 of the run
            "decay_epochs": (),  # epochs at which the "step" schedule decays
            "decay_rate": 0.1,  # factor of the "step" schedule
            "polynomial_power": 1.0,  # exponent of the "polynomial" schedule
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 1e-4,
            "decay_mask": "kernels",  # or "all"; also applies to trust ratios of LARS and LAMB
            "trust_coefficient": 0.001,  # for LARS
            "grad_clip_norm": 0.0,  # global norm; 0 for no clipping
            "label_smoothing": 0.0,
            "ema_decay": 0.0,  # averages the weights and evaluates the average; 0 for none
            "precise_bn_batches": 0,  # batches for precise BN at each evaluation; 0 for none
            "parallel": "pmap",  # or "mesh"
            "mesh": {"fsdp": 1},  # number of devices that share one copy of the state
            "log_every_steps": 10,
            "eval_every_epochs": 1,
            "checkpoint_every_steps": 0,  # 0 for never
            "checkpoint_every_minutes": 10.0,  # 0 for never
            "checkpoint_max_to_keep": 3,  # the last ones; the best one is kept too
            "on_nonfinite": "stop",  # or "skip": discard the update
            "max_consecutive_nonfinite": 10,  # consecutive skipped updates that stop the run
            "data": {
                "data_dir": "",  # directory of prepared datasets; "" for TFDS's default
                # 0: images of one size, in memory; N: any size, resized to NxN; -1: any size,
                # resized to the pretrained model's input size.
                "image_size": 0,
                # Evaluation of resized images; 0 or "": the pretrained model's, or image_size,
                # 0.875 and "bilinear".
                "eval_size": 0,
                "crop_pct": 0.0,  # side of the center crop over that of the resized image
                "interpolation": "",  # "nearest", "bilinear", "bicubic" or "lanczos"
                "channels": 0,  # 1 or 3 converts all images; 0 keeps theirs
                "on_bad_example": "raise",  # or "skip": count and report
                "placement": "auto",  # "host", "device", or "auto": small datasets on the device
                "num_workers": 0,  # processes that decode images of any size; 0 for threads
                "mean": (),  # of each channel, 0 to 1; (): the pretrained weights' or dataset's
                "std": (),
                "pad_crop": 0,  # pixels of padding before a random crop; 0 for none
                "inception_crop": False,  # crop 8 to 100 % of the area and resize it
                "flip": False,  # mirror at random
                "alternating_flip": False,  # mirror in every other epoch
                "rand_augment": (),  # number of operations and magnitude, as (2, 9)
                "color_jitter": (),  # brightness, contrast, saturation, hue: (0.4, 0.4, 0.4, 0.1)
                "random_erasing": 0.0,  # probability
                "cutout": 0,  # side of the erased square, in pixels
                "mixup": 0.0,  # alpha; 0 for none
                "cutmix": 0.0,
            },
        }
    )
    # Fields of the model's spec; None keeps the value of the named model.
    config.spec = ConfigDict(
        {
            f.name: placeholder(_flag_type(f.type))
            for f in dataclasses.fields(Spec)
            if f.name not in ("num_classes", "pruned")
        }
    )
    return config.lock()


def _flag_type(annotation: Any) -> type:
    """Returns the type of a field's flag: for a union, its first member."""
    if isinstance(annotation, types.UnionType):
        annotation = typing.get_args(annotation)[0]
    return typing.get_origin(annotation) or annotation


def to_json_dict(config: ConfigDict) -> dict[str, Any]:
    """Returns a config as JSON values.

    >>> to_json_dict(ConfigDict({"a": (1, 2), "b": {"c": None}}))
    {'a': [1, 2], 'b': {'c': None}}
    """
    return json.loads(json.dumps(config.to_dict()))


def spec_overrides(config: ConfigDict) -> dict[str, Any]:
    """Returns the fields of the spec that a config sets."""
    return {key: value for key, value in config.spec.items() if value is not None}


def build_model(config: ConfigDict, num_classes: int | None = None) -> ResNet:
    """Builds the model that a config names, by default with the number of classes of its name."""
    overrides = spec_overrides(config)
    if num_classes is not None:
        overrides["num_classes"] = num_classes
    return create_model(
        config.model, dtype=config.dtype, scan=config.scan, remat=config.remat, **overrides
    )


def build_augment(config: ConfigDict) -> Augment | None:
    """Builds the augmentation of a config; None if there is none."""
    data = config.data
    return make_augment(
        pad_crop=data.pad_crop,
        inception_crop=data.inception_crop,
        flip="alternating" if data.alternating_flip else "random" if data.flip else "none",
        rand_augment=data.rand_augment,
        color_jitter=data.color_jitter,
        random_erasing=data.random_erasing,
        cutout=data.cutout,
    )


def build_mix(config: ConfigDict) -> Mix | None:
    """Builds mixup and CutMix of a config; None if there are none."""
    return make_mix(mixup=config.data.mixup, cutmix=config.data.cutmix)


class Rule(NamedTuple):
    """Valid values of a key, in words and as a test."""

    expected: str
    is_valid: Callable[[Any], bool]


_POSITIVE = Rule("more than 0", lambda v: v > 0)
_COUNT = Rule("1 to 2**31 - 1", lambda v: 0 < v < 2**31)
_COUNT_OR_ZERO = Rule("0 to 2**31 - 1", lambda v: 0 <= v < 2**31)
_NOT_NEGATIVE = Rule("0 or more", lambda v: v >= 0)
_LESS_THAN_ONE = Rule("0 to less than 1", lambda v: 0 <= v < 1)
RULES: dict[str, Rule] = {
    "seed": Rule("0 to 2**32 - 1", lambda v: 0 <= v < 2**32),
    "epochs": _COUNT_OR_ZERO,
    "batch_size": _COUNT,
    "grad_accum_steps": _COUNT,
    "learning_rate": _POSITIVE,
    "head_learning_rate": _NOT_NEGATIVE,
    "layer_decay": Rule("more than 0, up to 1", lambda v: 0 < v <= 1),
    "freeze": Rule(
        "patterns of parameter names, such as 'stem*,stage[12]*'",
        lambda v: v is None or isinstance(v, str) or all(isinstance(x, str) for x in v),
    ),
    "ghost_batch_size": _COUNT,
    "warmup_epochs": _NOT_NEGATIVE,
    "decay_epochs": Rule(
        "increasing epochs",
        lambda v: list(v) == sorted({*v}) and all(0 < e < 2**31 for e in v),
    ),
    "decay_rate": _POSITIVE,
    "polynomial_power": _POSITIVE,
    "momentum": _LESS_THAN_ONE,
    "weight_decay": _NOT_NEGATIVE,
    "trust_coefficient": _POSITIVE,
    "grad_clip_norm": _NOT_NEGATIVE,
    "label_smoothing": _LESS_THAN_ONE,
    "ema_decay": _LESS_THAN_ONE,
    "precise_bn_batches": _COUNT_OR_ZERO,
    "mesh.fsdp": _COUNT,
    "log_every_steps": _COUNT,
    "eval_every_epochs": _COUNT,
    "checkpoint_every_steps": _COUNT_OR_ZERO,
    "checkpoint_every_minutes": _NOT_NEGATIVE,
    "checkpoint_max_to_keep": Rule(
        "2 or more, since the last one can be corrupt", lambda v: 2 <= v < 2**31
    ),
    "max_consecutive_nonfinite": _COUNT,
    "data.image_size": Rule("-1, 0, or 8 to 4096", lambda v: v in (-1, 0) or 8 <= v <= 4096),
    "data.eval_size": Rule("0, or 8 to 4096", lambda v: v == 0 or 8 <= v <= 4096),
    "data.crop_pct": Rule("0 to 1", lambda v: 0 <= v <= 1),
    "data.interpolation": Rule(
        f"'', {', '.join(INTERPOLATIONS)}", lambda v: v in ("", *INTERPOLATIONS)
    ),
    "data.channels": Rule("0, 1 or 3", lambda v: v in (0, 1, 3)),
    "data.num_workers": Rule("0 to 1024", lambda v: 0 <= v <= 1024),
    "data.mean": Rule("numbers", lambda v: all(abs(x) < 1e6 for x in v)),
    "data.std": Rule("positive numbers", lambda v: all(0 < x < 1e6 for x in v)),
}
# Valid names of keys that take a name.
CHOICES: dict[str, Any] = {
    "optimizer": OPTIMIZERS,
    "batch_norm": BATCH_NORM_MODES,
    "schedule": SCHEDULES,
    "decay_mask": DECAY_MASKS,
    "parallel": ENGINES,
    "on_nonfinite": ACTIONS[1:],
    "data.placement": PLACEMENTS,
    "data.on_bad_example": ON_BAD_EXAMPLE,
}
# Rules over several keys: the invalid combination, and its message.
COMBINATIONS: tuple[tuple[Callable[[ConfigDict], bool], str], ...] = (
    (
        lambda c: not c.epochs and not c.pretrained,
        "config.epochs is 0, which only evaluates: expected config.pretrained with it, or 1 epoch"
        " or more",
    ),
    (
        lambda c: c.data.image_size == -1 and not c.pretrained,
        "config.data.image_size is -1, the input size of the pretrained model: expected"
        " config.pretrained with it",
    ),
    (
        lambda c: c.warmup_epochs > c.epochs > 0,
        "config.warmup_epochs is {c.warmup_epochs}: expected at most epochs, {c.epochs}",
    ),
    (
        lambda c: c.schedule == "step" and min(c.decay_epochs, default=math.inf) < c.warmup_epochs,
        "config.decay_epochs is {c.decay_epochs}: expected none before warmup_epochs,"
        " {c.warmup_epochs}",
    ),
    (
        lambda c: c.data.placement == "device" and c.data.image_size,
        "config.data.placement is 'device' with config.data.image_size={c.data.image_size}, which"
        " streams images from disk: expected 'host' or 'auto'",
    ),
    (
        lambda c: c.data.flip and c.data.alternating_flip,
        "config.data.flip and config.data.alternating_flip are both True: expected one of them",
    ),
    (
        lambda c: c.reset_head and not c.pretrained,
        "config.reset_head is True without config.pretrained, whose head it replaces",
    ),
    (
        lambda c: c.freeze_batch_norm and c.batch_norm not in ("global", "frozen"),
        "config.freeze_batch_norm is True with config.batch_norm={c.batch_norm!r}: expected one of"
        " them",
    ),
)


def _check_model(config: ConfigDict) -> None:
    """Builds the model, unless the pretrained weights say which one."""
    if config.model or not config.pretrained:
        check_averaging(config, build_model(config).spec)


def check_averaging(config: ConfigDict, spec: Spec) -> None:
    """Raises `UserError` if averaged weights have no batch statistics of their own."""
    is_frozen = config.freeze_batch_norm or config.batch_norm == "frozen"
    has_own = config.precise_bn_batches or is_frozen or spec.norm != "batch"
    if config.ema_decay and not has_own:
        raise UserError(
            f"config.ema_decay is {config.ema_decay}: averaged weights need batch statistics"
            " computed for them: set --config.precise_bn_batches=16 or more"
        )


# Functions that check the values they take.
CHECKS: tuple[Callable[[ConfigDict], Any], ...] = (
    _check_model,
    build_augment,
    build_mix,
    lambda c: check_fsdp(c.parallel, c.mesh.fsdp),
)


def _check_type(key: str, value: Any, kind: type) -> None:
    if kind is type(None):  # a placeholder, whose type ml_collections checks
        return
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or isinstance(value, bool) != (kind is bool):
        raise UserError(f"config.{key} is {value!r}: expected {kind.__name__}")
    if kind is float and not abs(value) < 3e38:  # nor NaN
        raise UserError(f"config.{key} is {value!r}: expected a number in the range of float32")


def check_config(config: ConfigDict) -> None:
    """Checks everything that depends on the config alone.

    Raises:
      UserError: on a key that is unknown or missing, or a value that is invalid, alone or together
        with another.
    """
    _check_keys(flatten_config(config), flatten_config(default_config()))
    for is_invalid, message in COMBINATIONS:
        if is_invalid(config):
            raise UserError(message.format(c=config))
    for build in CHECKS:
        build(config)


def _check_keys(actual: dict[str, Any], known: dict[str, Any]) -> None:
    """Checks each key and value alone."""
    for key in actual:
        if key not in known:
            raise unknown("config key", key, known)
    for key, default in known.items():
        if key not in actual:
            raise UserError(f"config.{key} is missing: start from default_config()")
        _check_type(key, actual[key], type(default))
    for key, rule in RULES.items():
        try:
            valid = rule.is_valid(actual[key])
        except TypeError:
            valid = False
        if not valid:
            raise UserError(f"config.{key} is {actual[key]!r}: expected {rule.expected}")
    for key, names in CHOICES.items():
        if actual[key] not in names:
            raise unknown(key, actual[key], names)
