"""Keys of the config that have no effect on what the others choose, as a table."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from resflax.data.fake import is_fake
from resflax.data.kinds import kind_of
from resflax.errors import UserError
from resflax.nn.drop import RATES
from resflax.run.config_diff import flatten_config
from resflax.run.metric_writer import WRITERS, parse_writers
from resflax.train.config import build_model, crop_kind
from resflax.train.config_keys import (
    AUGMENTATION,
    DISTILLATION,
    KEYS,
    LOSS,
    OPTIMIZER,
    REGULARIZATION,
    SCHEDULE,
)
from resflax.train.ensemble import MEMBER_KEYS, SHARED, is_ensemble
from resflax.train.ensemble_rules import is_random
from resflax.train.rule import Row
from resflax.train.unused_loss import LOSS_ROWS
from resflax.train.unused_optimizer import OPTIMIZER_ROWS
from resflax.train.unused_spec import unused_fields
from resflax.weights.shapes import has_batch_stats

# Keys of `data` for how examples are read from a dataset on disk.
READING_KEYS = ("data_dir", "image_size", "channels", "on_bad_example")
# Keys of `data` for images that are resized as they are read.
STREAMING_KEYS = ("eval_size", "crop_pct", "crop_mode", "interpolation", "num_workers")
# Values of `data.train_crop` that only images of any size have a use for.
RESIZING = ("resize", "squash")
# Keys that change training images at random.
AUGMENT_KEYS = tuple(key for key in AUGMENTATION if key != "data.train_crop")
# Keys of a run that trains, besides those of `AUGMENT_KEYS`.
TRAINING_KEYS = (
    "freeze", "freeze_batch_norm", "batch_norm", "ghost_batch_size", "remat",
    *LOSS, *DISTILLATION,
    *(k for k in (*OPTIMIZER, *SCHEDULE, *REGULARIZATION) if k not in ("batch_size", "epochs")),
    "log_every_steps", "log_histograms_every_steps", "profile_steps", "eval_every_epochs",
    "checkpoint_every_steps", "checkpoint_every_minutes",
    "checkpoint_max_to_keep", "data.size_schedule",
    "spec.zero_init", *(f"spec.{name}" for name in RATES),
)  # fmt: skip


def _data(*names: str) -> tuple[str, ...]:
    return tuple(f"data.{name}" for name in names)


def _member_row(name: str, key: str) -> Row:
    return Row(
        (key,),
        lambda c: is_ensemble(c) and bool(c.ensemble[name]),
        f"config.ensemble.{name}={{c.ensemble.{name}!r}} has that of each member: leave one out",
    )


def _is_generated(c: ConfigDict) -> bool:
    return kind_of(c.dataset).is_in_memory


def _is_streamed(c: ConfigDict) -> bool:
    return bool(c.data.image_size) and not _is_generated(c)


def _mixup(c: ConfigDict) -> bool:
    return bool(c.data.mixup or any(c.ensemble.mixup))


def _has_no_batch_norm(c: ConfigDict) -> bool:
    return bool(c.model) and not has_batch_stats(build_model(c).spec)


ROWS: tuple[Row, ...] = (
    Row(
        (*TRAINING_KEYS, *AUGMENT_KEYS),
        lambda c: not c.epochs,
        "config.epochs is 0, which only evaluates: leave it out, or train for 1 epoch or more",
    ),
    Row(
        ("data.train_crop",),
        lambda c: not c.epochs and c.data.train_crop != "squash",  # which evaluation follows
        "config.epochs is 0, which only evaluates: leave it out, or use config.data.crop_mode",
    ),
    Row(
        ("whiten_stem",),
        lambda c: bool(c.pretrained),
        "config.pretrained={c.pretrained!r} has the initial parameters: leave it out",
    ),
    Row(
        ("reset_head",),
        lambda c: not c.pretrained,
        "config.pretrained is '', whose head it replaces: leave it out",
    ),
    Row(
        ("ghost_batch_size",),
        lambda c: c.batch_norm != "ghost",
        "config.batch_norm={c.batch_norm!r} has no groups: leave it out, or use ghost",
    ),
    Row(
        ("spec.zero_init",),
        lambda c: bool(c.pretrained),
        "config.pretrained={c.pretrained!r} has the initial parameters: leave it out",
    ),
    *OPTIMIZER_ROWS,
    Row(
        ("steps_per_call",),
        lambda c: _is_streamed(c) or c.data.placement == "host",
        "the training images are not kept on the devices: leave it out",
    ),
    *LOSS_ROWS,
    # Evaluation.
    Row(
        ("precise_bn_batches",),
        lambda c: c.freeze_batch_norm or c.batch_norm == "frozen",
        "the statistics of batch norm are frozen: leave it out",
    ),
    Row(
        ("precise_bn_batches",),
        _has_no_batch_norm,
        "the model has no batch norm: leave it out",
    ),
    # Logging.
    Row(
        ("log_histograms_every_steps",),
        lambda c: not any(WRITERS[name].has_histograms for name in parse_writers(c.log_to)),
        "config.log_to={c.log_to!r} has no writer of histograms: leave it out, or use "
        + " or ".join(name for name, row in WRITERS.items() if row.has_histograms),
    ),
    # Ensembles.
    *(
        Row(
            (f"ensemble.{name}",),
            lambda c: not is_ensemble(c),
            f"config.ensemble.size is 1: set config.{key}, or the size",
        )
        for name, key in {**MEMBER_KEYS, "seeds": "seed"}.items()
    ),
    Row(
        tuple(
            f"ensemble.{n}" for n in (*SHARED.values(), "member_devices", "method", "on_diverged")
        ),
        lambda c: not is_ensemble(c),
        "config.ensemble.size is 1: set the size",
    ),
    *(_member_row(name, key) for name, key in MEMBER_KEYS.items()),
    Row(
        ("seed",),
        lambda c: is_ensemble(c) and bool(c.ensemble.seeds) and not is_fake(c.dataset),
        "config.ensemble.seeds={c.ensemble.seeds!r} has that of each member: leave one out",
    ),
    Row(
        ("ensemble.share_augment",),
        lambda c: is_ensemble(c) and not is_random(c),
        "there is no random augmentation, drop path or dropout: leave it out",
    ),
    Row(
        ("parallel",),
        is_ensemble,
        "the members of config.ensemble have their own mesh: leave it out",
    ),
    # Data.
    Row(
        _data(*READING_KEYS),
        _is_generated,
        "the images of {c.dataset!r} are in memory, of one size and color mode: leave it out",
    ),
    Row(
        ("data.data_dir",),
        lambda c: kind_of(c.dataset).has_path,
        "{c.dataset!r} is not a dataset of TensorFlow Datasets: leave it out",
    ),
    Row(
        _data(*STREAMING_KEYS),
        lambda c: not _is_streamed(c),
        "the images of {c.dataset!r} are in memory and neither resized nor cropped: leave it out,"
        " or stream a dataset with config.data.image_size",
    ),
    Row(
        ("data.train_crop",),
        lambda c: not _is_streamed(c) and c.data.train_crop in RESIZING,
        "the images of {c.dataset!r} are in memory and not resized: leave it out, or stream a"
        " dataset with config.data.image_size",
    ),
    Row(
        _data("mixup_mode", "mixup_prob", "mixup_off_epoch"),
        lambda c: not _mixup(c) and not c.data.cutmix,
        "config.data.mixup and config.data.cutmix are 0: leave it out, or set one of them",
    ),
    Row(
        ("data.mixup_switch_prob",),
        lambda c: not _mixup(c) or not c.data.cutmix,
        "config.data.mixup or config.data.cutmix is 0: leave it out, or set both",
    ),
    Row(
        ("data.train_interpolation",),
        lambda c: not _is_streamed(c) or crop_kind(c) == "none",
        "training images are not resized, or as in evaluation: leave it out, or use"
        " config.data.image_size and another config.data.train_crop than none",
    ),
    Row(
        _data("crop_scale", "crop_ratio"),
        lambda c: crop_kind(c) != "inception",
        "config.data.train_crop={c.data.train_crop!r} makes no Inception crops here: leave it out,"
        " or use inception",
    ),
    Row(
        ("data.placement",),
        _is_streamed,
        "config.data.image_size={c.data.image_size} streams images from disk: leave it out",
    ),
    Row(
        _data("train_split", "validation_split", "test_split"),
        lambda c: is_fake(c.dataset),
        "{c.dataset!r} is noise, whose splits are train and test: leave it out",
    ),
    Row(
        _data("image_key", "label_key"),
        lambda c: not kind_of(c.dataset).has_keys,
        "the images and labels of {c.dataset!r} have no names: leave it out",
    ),
    Row(
        ("data.validation_seed",),
        lambda c: _is_generated(c) and not c.data.validation,
        "config.data.validation is 0, which holds out nothing: leave it out",
    ),
)


def unused_keys(config: ConfigDict) -> Iterator[tuple[str, str]]:
    """Yields each key without effect whose value is not the default, and the error message.

    Args:
      config: a config whose values are valid alone.
    """
    values, seen = flatten_config(config), set()
    for row in ROWS:
        for key in row.keys:
            if key not in seen and _is_set(key, values) and row.is_unused(config):
                seen.add(key)
                yield key, f"config.{key} is {values[key]!r}, but {row.reason.format(c=config)}"
    for field, reason in unused_fields(config):
        key = f"spec.{field}"
        if key not in seen:
            yield key, f"config.{key} is {values[key]!r}, but {reason}"


def check_unused(config: ConfigDict) -> None:
    """Raises `UserError` if a key has no effect and its value is not the default."""
    for _, message in unused_keys(config):
        raise UserError(message)


def reset_unused(config: ConfigDict, before: ConfigDict, given: Collection[str]) -> tuple[str, ...]:
    """Sets keys of a recipe that other keys leave without effect to their defaults.

    Args:
      config: the recipe with the keys of the command line, changed here.
      before: the recipe alone; what has no effect there is left as it is, and refused later.
      given: keys that the command line sets, which are left as they are.

    Returns:
      The keys that were set to their defaults.
    """
    unchanged = {*given, *(key for key, _ in unused_keys(before))}
    reset: list[str] = []
    while found := [key for key, _ in unused_keys(config) if key not in unchanged]:
        config.update_from_flattened_dict({key: KEYS[key].default for key in found})
        reset += found
    return tuple(sorted(reset))


def _is_set(key: str, values: Mapping[str, Any]) -> bool:
    value, default = values[key], KEYS[key].default
    return bool(value != default and not (default is None and value in ("", (), [])))
