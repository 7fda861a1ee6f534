"""Valid values of the keys of a config, alone and together."""

import math
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from resflax.data.augment import TRANSFORMS
from resflax.data.augment.mix import MIXES, MODES
from resflax.data.crops import CROPS, RANDOM
from resflax.data.eval_transform import CROP_MODES, INTERPOLATIONS
from resflax.data.source import ON_BAD_EXAMPLE
from resflax.data.views import TTA
from resflax.distributed.engines import ENGINES, check_fsdp
from resflax.distributed.ensemble_engine import METHODS
from resflax.errors import UserError, unknown
from resflax.nn import BATCH_NORM_MODES, Spec
from resflax.nn.drop import RATES
from resflax.nn.field_table import FIELDS
from resflax.nn.spec_checks import OUTPUT_STRIDES
from resflax.run.config_diff import flatten_config
from resflax.run.metric_writer import WRITERS, parse_writers
from resflax.train.averaging import EMA_WARMUPS, evaluated_weights
from resflax.train.clipping import CLIPPINGS
from resflax.train.config import build_augment, build_mix, build_model, default_config
from resflax.train.config_keys import KEYS
from resflax.train.ensemble_rules import MEMBER_RULES, ON_DIVERGED, check_ensemble
from resflax.train.eval_sets import EXPECTED as EXPECTED_SETS
from resflax.train.eval_sets import parse_eval_sets
from resflax.train.image_sizes import (
    SIZE_SCHEDULE_COMBINATIONS,
    SIZE_SCHEDULE_RULE,
    batch_sizes,
)
from resflax.train.input_pipeline import PLACEMENTS
from resflax.train.learning_rate import SCALINGS
from resflax.train.losses import LOSSES
from resflax.train.nonfinite import ACTIONS
from resflax.train.optimizer_rules import check_optimizer
from resflax.train.optimizers import OPTIMIZERS
from resflax.train.rule import (
    COUNT,
    COUNT_OR_ZERO,
    LESS_THAN_ONE,
    MAX_FLOAT,
    NOT_NEGATIVE,
    POSITIVE,
    PROBABILITY,
    SEED,
    TYPE_NAMES,
    Combination,
    Rule,
    check_combinations,
    check_type,
)
from resflax.train.schedules import SCHEDULES
from resflax.train.unknown_keys import unknown_key
from resflax.train.unused_keys import check_unused
from resflax.train.weight_decay import DECAY_MASKS
from resflax.weights.shapes import has_batch_stats
from resflax.zoo.registry import DTYPES


def _are_pairs(value: Any) -> bool:
    """Returns whether a value has pairs of a text and something else."""
    return all(len(pair) == 2 and isinstance(pair[0], str) for pair in value)


def _are_names(value: Any) -> bool:
    """Returns whether a value is None, a string, or a list or tuple of strings."""
    is_list = isinstance(value, tuple | list) and all(isinstance(x, str) for x in value)
    return value is None or isinstance(value, str) or is_list


RULES: dict[str, Rule] = {
    "dataset": Rule(
        "folder:PATH, csv:FILE, hf:PATH, digits, or a name of TensorFlow Datasets", bool
    ),
    "seed": SEED,
    "epochs": COUNT_OR_ZERO,
    "max_steps": COUNT_OR_ZERO,
    "batch_size": COUNT,
    "grad_accum_steps": COUNT,
    "steps_per_call": Rule("1 to 1000000", lambda v: 1 <= v <= 1_000_000),
    "learning_rate": POSITIVE,
    "base_batch_size": COUNT,
    "learning_rate_factors": Rule(
        "pairs of a pattern and a factor above 0, such as (('stem*', 0.1), ('head', 10.0))",
        lambda v: _are_pairs(v) and all(0 < factor < MAX_FLOAT for _, factor in v),
    ),
    "weight_decay_factors": Rule(
        "pairs of a pattern and a factor of 0 or more, such as (('stem*', 0), ('head', 10.0))",
        lambda v: _are_pairs(v) and all(0 <= factor < MAX_FLOAT for _, factor in v),
    ),
    "head_learning_rate": NOT_NEGATIVE,
    "layer_decay": Rule("more than 0, up to 1", lambda v: 0 < v <= 1),
    "freeze": Rule("patterns of parameter names, such as 'stem*,stage[12]*'", _are_names),
    "eval_sets": Rule(
        EXPECTED_SETS,
        lambda v: v is None or isinstance(v, str | tuple | list),
    ),
    "ghost_batch_size": COUNT,
    "warmup_epochs": NOT_NEGATIVE,
    "warmup_learning_rate": NOT_NEGATIVE,
    "min_learning_rate": NOT_NEGATIVE,
    "decay_epochs": Rule(
        "increasing epochs",
        lambda v: list(v) == sorted({*v}) and all(0 < e < 2**31 for e in v),
    ),
    "decay_rate": POSITIVE,
    "plateau_patience": COUNT_OR_ZERO,
    "plateau_threshold": NOT_NEGATIVE,
    "polynomial_power": POSITIVE,
    "schedule_cycles": COUNT,
    "momentum": LESS_THAN_ONE,
    "weight_decay": NOT_NEGATIVE,
    "trust_coefficient": POSITIVE,
    "grad_clip": NOT_NEGATIVE,
    "sam_rho": NOT_NEGATIVE,
    "label_smoothing": LESS_THAN_ONE,
    "distill.weight": Rule("0 to 1", lambda v: 0 <= v <= 1),
    "distill.temperature": POSITIVE,
    "distill.features": Rule("names of feature maps, such as 'stage3,pooled'", _are_names),
    "distill.feature_weight": POSITIVE,
    "bce_target_threshold": Rule("0 to less than 1", lambda v: v is None or 0 <= v < 1),
    "focal_alpha": Rule("0 to 1, or -1 for none", lambda v: v == -1 or 0 <= v <= 1),
    "focal_gamma": NOT_NEGATIVE,
    "jsd_weight": POSITIVE,
    "betas": Rule("numbers from 0 to less than 1", lambda v: all(0 <= x < 1 for x in v)),
    "eps": NOT_NEGATIVE,
    "ema_decay": LESS_THAN_ONE,
    "ema_every_steps": COUNT,
    "ema_start_step": COUNT_OR_ZERO,
    "precise_bn_batches": COUNT_OR_ZERO,
    "mesh.fsdp": COUNT,
    "log_every_steps": COUNT,
    "log_to": Rule(
        f"names among {', '.join(WRITERS)}, each once, such as tensorboard,csv",
        lambda v: (
            all(name in WRITERS for name in parse_writers(v))
            and len({*parse_writers(v)}) == len(parse_writers(v))
        ),
    ),
    "log_histograms_every_steps": COUNT_OR_ZERO,
    "profile_steps": Rule(
        "the first and the last step, 1 or more, such as (10, 13)",
        lambda v: (
            not v or (len(v) == 2 and all(type(x) is int for x in v) and 1 <= v[0] <= v[1] < 2**31)
        ),
    ),
    "eval_every_epochs": COUNT,
    "checkpoint_every_steps": COUNT_OR_ZERO,
    "checkpoint_every_minutes": NOT_NEGATIVE,
    "checkpoint_max_to_keep": Rule(
        "2 or more, since the last one can be corrupt", lambda v: 2 <= v < 2**31
    ),
    "max_consecutive_nonfinite": COUNT,
    "ensemble.size": Rule("1 to 1024", lambda v: 1 <= v <= 1024),
    "ensemble.member_devices": COUNT_OR_ZERO,
    "data.image_size": Rule("-1, 0, or 8 to 4096", lambda v: v in (-1, 0) or 8 <= v <= 4096),
    "data.size_schedule": SIZE_SCHEDULE_RULE,
    "data.eval_size": Rule("0, or 8 to 4096", lambda v: v == 0 or 8 <= v <= 4096),
    "data.crop_pct": Rule("0 to 1", lambda v: 0 <= v <= 1),
    "data.crop_scale": Rule(
        "smallest and largest share of the area, above 0, up to 1, such as (0.35, 1)",
        lambda v: len(v) == 2 and 0 < v[0] <= v[1] <= 1,
    ),
    "data.crop_ratio": Rule(
        "smallest and largest ratio of width to height, 0.01 to 100, such as (0.75, 1.3333)",
        lambda v: len(v) == 2 and 0.01 <= v[0] <= v[1] <= 100,
    ),
    "data.crop_mode": Rule(f"'', {', '.join(CROP_MODES)}", lambda v: v in ("", *CROP_MODES)),
    "data.train_interpolation": Rule(
        f"'', random, {', '.join(INTERPOLATIONS)}",
        lambda v: v in ("", RANDOM, *INTERPOLATIONS),
    ),
    "data.interpolation": Rule(
        f"'', {', '.join(INTERPOLATIONS)}", lambda v: v in ("", *INTERPOLATIONS)
    ),
    "data.mixup_prob": Rule("more than 0, up to 1", lambda v: 0 < v <= 1),
    "data.mixup_switch_prob": PROBABILITY,
    "data.mixup_off_epoch": COUNT_OR_ZERO,
    "data.repeats": Rule("1 to 1024", lambda v: 1 <= v <= 1024),
    "data.aug_splits": Rule("1 to 16", lambda v: 1 <= v <= 16),
    "data.channels": Rule("0, 1 or 3", lambda v: v in (0, 1, 3)),
    "data.validation": LESS_THAN_ONE,
    "data.validation_seed": SEED,
    "data.num_workers": Rule("0 to 1024", lambda v: 0 <= v <= 1024),
    "data.mean": Rule("numbers", lambda v: all(abs(x) < 1e6 for x in v)),
    "data.std": Rule("positive numbers", lambda v: all(0 < x < 1e6 for x in v)),
}
# Valid names of keys that take a name.
CHOICES: dict[str, Any] = {
    "loss": LOSSES,
    "optimizer": OPTIMIZERS,
    "learning_rate_scaling": SCALINGS,
    "batch_norm": BATCH_NORM_MODES,
    "schedule": SCHEDULES,
    "decay_mask": DECAY_MASKS,
    "grad_clip_mode": CLIPPINGS,
    "ema_warmup": EMA_WARMUPS,
    "eval_tta": TTA,
    "parallel": ENGINES,
    "on_nonfinite": ACTIONS[1:],
    "ensemble.method": METHODS,
    "ensemble.on_diverged": ON_DIVERGED,
    "data.mixup_mode": MODES,
    "data.train_crop": ("auto", *CROPS),
    "data.placement": PLACEMENTS,
    "data.on_bad_example": ON_BAD_EXAMPLE,
}
# Valid values of keys that other functions check, in words.
EXPECTED: dict[str, str] = {
    "model": "a name of `resflax list`",
    "dtype": f"one of {', '.join(DTYPES)}",
    "spec.output_stride": ", ".join(map(str, OUTPUT_STRIDES)),
    **{
        f"data.{name}": row.expected
        for name, row in TRANSFORMS.items()
        if f"data.{name}" in KEYS and KEYS[f"data.{name}"].default is not False
    },
    **{f"data.{name}": MEMBER_RULES["mixup"].expected for name in MIXES},
    **{
        f"ensemble.{name}": f"one number per member, {r.expected}"
        for name, r in MEMBER_RULES.items()
    },
    **{f"spec.{name}": f"one of {', '.join(row.table)}" for name, row in FIELDS.items()},
    **{f"spec.{name}": LESS_THAN_ONE.expected for name in RATES},
}
# Rules over several keys: the invalid combination, and its message.
COMBINATIONS: tuple[Combination, ...] = (
    *SIZE_SCHEDULE_COMBINATIONS,
    (
        lambda c: not c.epochs and not c.pretrained,
        "config.epochs is 0, which only evaluates: expected config.pretrained with it, or 1 epoch"
        " or more",
    ),
    (
        lambda c: not c.epochs and c.reset_head,
        "config.epochs is 0, which only evaluates, with config.reset_head=True, which needs"
        " training: expected one of them",
    ),
    (
        lambda c: not c.model and not c.pretrained,
        "config.pretrained is '': expected pretrained weights, or a name of `resflax list` as"
        " config.model, which is '' too",
    ),
    (
        lambda c: c.data.image_size == -1 and c.model and not c.pretrained,
        "config.pretrained is '': expected pretrained weights, whose input size the images get with"
        " config.data.image_size=-1",
    ),
    (
        lambda c: c.warmup_epochs > c.epochs > 0,
        "config.warmup_epochs is {c.warmup_epochs}: expected at most config.epochs, {c.epochs}",
    ),
    (
        lambda c: c.schedule == "step" and min(c.decay_epochs, default=math.inf) < c.warmup_epochs,
        "config.decay_epochs is {c.decay_epochs}: expected none before"
        " config.warmup_epochs, {c.warmup_epochs}",
    ),
    (
        lambda c: c.data.flip and c.data.alternating_flip,
        "config.data.flip and config.data.alternating_flip are both True: expected one of them",
    ),
    (
        lambda c: c.data.mixup_off_epoch >= c.epochs > 0,
        "config.data.mixup_off_epoch is {c.data.mixup_off_epoch}: expected less than epochs,"
        " {c.epochs}",
    ),
    (
        lambda c: c.data.repeats > min(batch_sizes(c)),
        "config.data.repeats is {c.data.repeats}: expected at most batch_size, {c.batch_size}, and"
        " those of data.size_schedule",
    ),
    (
        lambda c: c.data.repeats > 1 and c.data.alternating_flip,
        "config.data.repeats is {c.data.repeats} with config.data.alternating_flip, which mirrors"
        " all copies of an example or none: expected config.data.flip",
    ),
    (
        lambda c: (
            c.data.aug_splits > 1 and (c.data.mixup or c.data.cutmix or any(c.ensemble.mixup))
        ),
        "config.data.aug_splits is {c.data.aug_splits}: expected no mixup or CutMix with it, whose"
        " first copies are not mixed",
    ),
    (
        lambda c: c.data.aug_splits > 1 and c.loss != "cross_entropy",
        "config.data.aug_splits is {c.data.aug_splits} with config.loss={c.loss!r}: expected"
        " cross_entropy, of the probabilities that the Jensen-Shannon divergence compares",
    ),
    (
        lambda c: c.data.aug_splits > 1 and bool(c.distill.teacher),
        "config.data.aug_splits is {c.data.aug_splits} with config.distill.teacher="
        "{c.distill.teacher!r}: expected one of them",
    ),
    (
        lambda c: c.distill.weight == 0 and not c.distill.features,
        "config.distill.weight is {c.distill.weight} without config.distill.features: expected more"
        " than 0, or the names of feature maps to learn",
    ),
    (
        lambda c: c.data.rand_augment and c.data.auto_augment,
        "config.data.rand_augment is {c.data.rand_augment} with"
        " config.data.auto_augment={c.data.auto_augment!r}: expected one of them",
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
    """Raises `UserError` if averaged weights have no separate batch statistics."""
    is_frozen = config.freeze_batch_norm or config.batch_norm == "frozen"
    has_own = config.precise_bn_batches or is_frozen or not has_batch_stats(spec)
    weights = evaluated_weights(config)
    if weights != "params" and not has_own:
        key = "ema_decay" if weights == "ema" else "optimizer"
        raise UserError(
            f"config.{key} is {config[key]}: averaged weights need batch statistics"
            " computed for them: give the number of batches, as --config.precise_bn_batches=16"
        )


# Functions that check the values they take.
CHECKS: tuple[Callable[[ConfigDict], Any], ...] = (
    _check_model,
    lambda c: parse_eval_sets(c.eval_sets),
    build_augment,
    build_mix,
    check_ensemble,  # whose rule for mesh.fsdp holds with every engine
    check_optimizer,
    lambda c: check_fsdp(c.parallel, c.mesh.fsdp),
    check_unused,
)


def expected_values(key: str) -> str:
    """Returns the valid values of a key in words.

    >>> expected_values("decay_mask"), expected_values("learning_rate"), expected_values("remat")
    ('one of kernels, all', 'more than 0', 'True or False')
    """
    if key in CHOICES:
        return f"one of {', '.join(CHOICES[key])}"
    if key in RULES:
        return RULES[key].expected
    row = KEYS[key]
    return EXPECTED.get(key) or TYPE_NAMES[row.kind or type(row.default)]


def check_config(config: ConfigDict) -> None:
    """Checks everything that depends on the config alone.

    Raises:
      UserError: on a key that is unknown or missing, or a value that is invalid, alone or together
        with another.
    """
    check_values(config)
    check_combinations(COMBINATIONS, config)
    for build in CHECKS:
        build(config)


def check_values(config: ConfigDict) -> None:
    """Checks each key and value alone.

    Raises:
      UserError: on a key that is unknown or missing, or a value that is invalid.
    """
    actual, known = flatten_config(config), flatten_config(default_config())
    for key in actual:
        if key not in known:
            raise unknown_key(key)
    for key, default in known.items():
        if key not in actual:
            raise UserError(f"config.{key} is missing: start from default_config()")
        check_type(f"config.{key}", actual[key], type(default))
    for key, rule in RULES.items():
        rule.check(f"config.{key}", actual[key])
    for key, names in CHOICES.items():
        if actual[key] not in names:
            raise unknown(key, actual[key], names)
