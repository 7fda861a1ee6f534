"""Every key of the config has valid values, and an invalid one is one line that names the key."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from resflax import UserError
from resflax.run.config_diff import flatten_config
from resflax.train import check_config, default_config
from resflax.train.config import build_augment, build_mix, build_model, to_json_dict
from resflax.train.config_rules import CHOICES, COMBINATIONS, RULES, check_values


def make_config(**keys):
    """Returns the default config with other values; `data__flip` is the key `data.flip`."""
    config = default_config()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in keys.items()})
    return config


def error_of(config):
    """Returns the message of `check_config`, which must be one line."""
    with pytest.raises(UserError) as e:
        check_config(config)
    message = str(e.value)
    assert "\n" not in message
    assert len(message) < 300
    return message


def test_default_config_is_valid():
    check_config(default_config())


def test_default_config_has_the_keys_that_other_tools_use():
    keys = {"model", "dataset", "seed", "epochs", "batch_size", "learning_rate", "parallel"}
    assert keys <= set(flatten_config(default_config()))
    assert default_config().parallel == "pmap"


# Invalid values of each key of `RULES`, and valid ones at the limits.
VALUES = {
    "dataset": ([""], ["digits", "folder:D"]),
    "seed": ([-1, 2**32], [0, 2**32 - 1]),
    "epochs": ([-1, 2**31], [1, 2**31 - 1]),
    "max_steps": ([-1, 2**31], [0, 20]),
    "batch_size": ([-8, 0, 2**31], [1]),
    "grad_accum_steps": ([0, 2**31], [1]),
    "steps_per_call": ([0, 1_000_001], [1, 500]),
    "learning_rate": ([0.0, -1.0, float("nan"), float("inf"), 1e39], [1e-9, 3e37]),
    "base_batch_size": ([0, -1], [1]),
    "distill.weight": ([-0.1, 1.1, float("nan")], [0.01, 1.0]),
    "distill.temperature": ([0.0, -1.0], [0.5, 20.0]),
    "distill.features": ([3, (1,), ("stage1", None)], [None, "", "stage1,pooled", ("stage1",)]),
    "distill.feature_weight": ([0.0, -1.0], [0.1, 100.0]),
    "bce_target_threshold": ([-0.1, 1.0], [0.0, 0.99]),
    "focal_alpha": ([-0.5, 1.1], [-1.0, 0.0, 1.0]),
    "jsd_weight": ([0.0, -1.0], [0.5, 12.0]),
    "focal_gamma": ([-1.0], [0.0, 5.0]),
    "learning_rate_factors": (
        [("stem", 0.1), (("stem", 0.0),), (("stem",),), ((0.1, 1),), (("stem", "0.1"),)],
        [(), (("stem*", 0.1), ("head/*", 10))],
    ),
    "weight_decay_factors": (
        [("stem", 0.1), (("stem", -1.0),), (("stem",),), ((0.1, 1),), (("stem", "0.1"),)],
        [(), (("stem*", 0.0), ("head/*", 10))],
    ),
    "head_learning_rate": ([-1.0], [0.0, 1.0]),
    "layer_decay": ([0.0, -0.5, 1.5], [1e-3, 1.0]),
    "freeze": ([3, (1,), ("stem*", None)], [None, "", "stem*,stage1*", ("stem*",), ["stem*"]]),
    "ghost_batch_size": ([0, -8], [1]),
    "eval_sets": ([3, 0.5], [None, "", "a=digits", ("a=digits",)]),
    "warmup_epochs": ([-0.5], [0.0, 10.0]),
    "warmup_learning_rate": ([-0.1], [0.0]),
    "min_learning_rate": ([-0.1], [0.0]),
    "decay_epochs": ([(3, 2), (2, 2), ("a",), (0,), (2**31,), (1, None)], [(), (1, 2.5)]),
    "decay_rate": ([0.0], [0.5]),
    "plateau_patience": ([-1], [0]),
    "plateau_threshold": ([-0.1], [0.0]),
    "polynomial_power": ([0.0], [0.5]),
    "schedule_cycles": ([0, -1], [1]),
    "momentum": ([1.0, -0.1], [0.0, 0.99]),
    "weight_decay": ([-1.0], [0.0]),
    "trust_coefficient": ([-1.0, 0.0], [0.1]),
    "grad_clip": ([-1.0], [0.0]),
    "sam_rho": ([-0.05], [0.0, 0.05]),
    "label_smoothing": ([1.0, -0.1], [0.0, 0.9]),
    "betas": ([(1.0,), (-0.1,), ("a",)], [(), (0.0, 0.99)]),
    "eps": ([-1e-8], [0.0, 1e-3]),
    "ema_decay": ([1.0, -0.1], [0.0]),
    "ema_every_steps": ([0], [1]),
    "ema_start_step": ([-1], [0]),
    "precise_bn_batches": ([-1, 2**31], [0, 1]),
    "mesh.fsdp": ([0], [1]),
    "log_every_steps": ([0], [1]),
    "log_to": (["tensorbord", "csv,csv", ("csv", 3), 3], [None, "", "csv, tensorboard", ("csv",)]),
    "log_histograms_every_steps": ([-1], [0]),
    "profile_steps": ([(0, 3), (4, 3), (3,), (1, 2, 3), ("a", "b"), (1.5, 2)], [(), (1, 1)]),
    "eval_every_epochs": ([0], [1]),
    "checkpoint_every_steps": ([-1], [0]),
    "checkpoint_every_minutes": ([-1.0], [0.0]),
    "checkpoint_max_to_keep": ([0, 1], [2]),
    "max_consecutive_nonfinite": ([0], [1]),
    "ensemble.size": ([0, -1], [1, 5]),
    "ensemble.member_devices": ([-1], [0, 4]),
    "data.image_size": ([4, -8, 4097], [0, 8, 4096]),
    "data.size_schedule": (
        [((1,),), ((1, 4),), ((1, 16.0),), ((2, 16), (1, 24)), ((1, 16, -1),), (1, 16), ("a",)],
        [(), ((0, 8),), ((0.5, 16), (2, 4096, 0), (3, 32, 64))],
    ),
    "data.eval_size": ([4, -1, 4097], [0, 8, 4096]),
    "data.crop_scale": ([(0.0, 1.0), (0.5, 0.1), (0.5,), ("a", 1)], [(0.35, 1), (1, 1)]),
    "data.crop_ratio": ([(0, 1), (2, 1), (1, 101), ()], [(0.75, 1.3333), (1, 1)]),
    "data.crop_pct": ([1.5, -0.1], [0.0, 0.5, 1.0]),
    "data.crop_mode": (["stretch", "resize"], ["", "center", "squash"]),
    "data.mixup_prob": ([0.0, 1.5], [0.1, 1.0]),
    "data.mixup_switch_prob": ([-0.1, 1.5], [0.0, 1.0]),
    "data.mixup_off_epoch": ([-1], [0, 9]),
    "data.repeats": ([0, 1025], [1, 3]),
    "data.aug_splits": ([0, 17], [1, 3]),
    "data.train_interpolation": (["hamming"], ["", "random", "bicubic"]),
    "data.interpolation": (["hamming", "center"], ["", "nearest", "bicubic"]),
    "data.channels": ([2, 4, -1], [0, 1, 3]),
    "data.validation": ([1.0, -0.1], [0.0, 0.5]),
    "data.validation_seed": ([-1, 2**32], [0]),
    "data.num_workers": ([-1, 1025], [0, 1024]),
    "data.mean": ([(float("nan"),), ("a",), (1e7,)], [(), (0.5, 0.4)]),
    "data.std": ([(0.0,), (-1.0,), ("a",)], [(), (0.5,)]),
}


def test_rules_and_values_have_the_same_keys():
    assert set(VALUES) == set(RULES)
    assert {*RULES, *CHOICES} <= set(flatten_config(default_config()))


@pytest.mark.parametrize(
    ("key", "value"), [(key, bad) for key, (invalid, _) in VALUES.items() for bad in invalid]
)
def test_invalid_value_is_named_with_its_key_and_rule(key, value):
    message = error_of(make_config(**{key: value}))
    assert message.startswith(f"config.{key} is {value!r}: expected ")
    in_range = isinstance(value, float) and not abs(value) < 3e38
    assert message.endswith("in the range of float32" if in_range else RULES[key].expected)


@pytest.mark.parametrize(
    ("key", "value"), [(key, good) for key, (_, valid) in VALUES.items() for good in valid]
)
def test_valid_values_at_the_limits_are_accepted(key, value):
    check_values(make_config(**{key: value}))


@pytest.mark.slow
@settings(deadline=None, max_examples=50)
@given(key=st.sampled_from(sorted(CHOICES)), name=st.text(max_size=20))
def test_unknown_choice_is_named_with_its_key(key, name):
    if name in CHOICES[key]:
        return
    message = error_of(make_config(**{key: name}))
    assert message.startswith(f"unknown {key} {name!r}: ")
    ending = message.removeprefix(f"unknown {key} {name!r}: ")
    similar = re.fullmatch("did you mean (.*)[?]", ending)
    if similar:
        assert {*similar[1].split(", ")} <= {*CHOICES[key]}
    else:
        assert ending == f"expected one of {', '.join(CHOICES[key])}"


@pytest.mark.parametrize(("key", "name"), [(key, n) for key, row in CHOICES.items() for n in row])
def test_known_choices_are_accepted(key, name):
    check_values(make_config(**{key: name}))


# An invalid combination for each row of `COMBINATIONS`, in order, and a valid one.
COMBINED = [
    (
        {"dataset": "folder:D", "data.image_size": 16, "data.size_schedule": ((0, 24),)},
        "config.data.size_schedule is ((0, 24),): expected a first epoch above 0, before which"
        " images have config.data.image_size, 16",
        {"dataset": "folder:D", "data.image_size": 16, "data.size_schedule": ((1, 24),)},
    ),
    (
        {"schedule": "cosine_cycles", "data.size_schedule": ((1, 16, 64),)},
        "config.data.size_schedule is ((1, 16, 64),) with config.schedule='cosine_cycles', whose"
        " cycles are of steps: expected rows without batch sizes",
        {"schedule": "cosine_cycles", "data.size_schedule": ((1, 16),)},
    ),
    (
        {"batch_norm": "per_device", "data.size_schedule": ((1, 16, 64),)},
        "config.data.size_schedule is ((1, 16, 64),) with config.batch_norm='per_device', whose"
        " groups depend on the batch size: expected rows without them",
        {"batch_norm": "per_device", "data.size_schedule": ((1, 16),)},
    ),
    (
        {"epochs": 0},
        "config.epochs is 0, which only evaluates: expected config.pretrained with it, or 1 epoch"
        " or more",
        {"epochs": 0, "pretrained": "runs/x"},
    ),
    (
        {"epochs": 0, "pretrained": "runs/x", "reset_head": True},
        "config.epochs is 0, which only evaluates, with config.reset_head=True, which needs"
        " training: expected one of them",
        {"pretrained": "runs/x", "reset_head": True},
    ),
    (
        {"model": ""},
        "config.pretrained is '': expected pretrained weights, or a name of `resflax list` as"
        " config.model, which is '' too",
        {"model": "", "pretrained": "runs/x"},
    ),
    (
        {"data.image_size": -1},
        "config.pretrained is '': expected pretrained weights, whose input size the images get with"
        " config.data.image_size=-1",
        {"data.image_size": -1, "pretrained": "runs/x", "dataset": "folder:D"},
    ),
    (
        {"warmup_epochs": 11.0},
        "config.warmup_epochs is 11.0: expected at most config.epochs, 10",
        {"warmup_epochs": 11.0, "epochs": 11},
    ),
    (
        {"schedule": "step", "decay_epochs": (1, 5), "warmup_epochs": 2.0},
        "config.decay_epochs is (1, 5): expected none before config.warmup_epochs, 2.0",
        {"schedule": "step", "decay_epochs": (2, 5), "warmup_epochs": 2.0},
    ),
    (
        {"data.flip": True, "data.alternating_flip": True},
        "config.data.flip and config.data.alternating_flip are both True: expected one of them",
        {"data.alternating_flip": True},
    ),
    (
        {"data.mixup_off_epoch": 10, "data.mixup": 0.2},
        "config.data.mixup_off_epoch is 10: expected less than epochs, 10",
        {"data.mixup_off_epoch": 9, "data.mixup": 0.2},
    ),
    (
        {"data.repeats": 3, "batch_size": 2},
        "config.data.repeats is 3: expected at most batch_size, 2, and those of data.size_schedule",
        {"data.repeats": 3, "batch_size": 8},
    ),
    (
        {"data.repeats": 3, "data.alternating_flip": True},
        "config.data.repeats is 3 with config.data.alternating_flip, which mirrors all copies of"
        " an example or none: expected config.data.flip",
        {"data.repeats": 3, "data.flip": True},
    ),
    (
        {"data.aug_splits": 3, "data.auto_augment": "augmix-m3-w3", "data.mixup": 0.2},
        "config.data.aug_splits is 3: expected no mixup or CutMix with it, whose first copies are"
        " not mixed",
        {"data.aug_splits": 3, "data.auto_augment": "augmix-m3-w3"},
    ),
    (
        {"data.aug_splits": 3, "data.auto_augment": "augmix-m3-w3", "loss": "bce"},
        "config.data.aug_splits is 3 with config.loss='bce': expected cross_entropy, of the"
        " probabilities that the Jensen-Shannon divergence compares",
        {"loss": "bce"},
    ),
    (
        {"data.aug_splits": 2, "data.cutout": 2, "distill.teacher": "runs/x"},
        "config.data.aug_splits is 2 with config.distill.teacher='runs/x': expected one of them",
        {"data.aug_splits": 2, "data.cutout": 2},
    ),
    (
        {"distill.teacher": "runs/x", "distill.weight": 0.0},
        "config.distill.weight is 0.0 without config.distill.features: expected more than 0, or the"
        " names of feature maps to learn",
        {"distill.teacher": "runs/x", "distill.weight": 0.0, "distill.features": "pooled"},
    ),
    (
        {"data.rand_augment": (2, 9), "data.auto_augment": "trivial"},
        "config.data.rand_augment is (2, 9) with config.data.auto_augment='trivial': expected one"
        " of them",
        {"data.auto_augment": "rand-m7-mstd0.5-inc1"},
    ),
    (
        {"freeze_batch_norm": True, "batch_norm": "ghost"},
        "config.freeze_batch_norm is True with config.batch_norm='ghost': expected one of them",
        {"freeze_batch_norm": True, "batch_norm": "frozen"},
    ),
]


@pytest.mark.parametrize("number", range(len(COMBINATIONS)))
def test_invalid_combination_is_one_line(number):
    assert len(COMBINED) == len(COMBINATIONS)
    invalid, message, valid = COMBINED[number]
    is_invalid = [row[0](make_config(**invalid)) for row in COMBINATIONS]
    assert [bool(x) for x in is_invalid] == [n == number for n in range(len(COMBINATIONS))]
    assert error_of(make_config(**invalid)) == message
    check_config(make_config(**valid))


def test_fsdp_under_pmap_is_one_line():
    message = "config.mesh.fsdp is 2 with config.parallel='pmap': expected 'mesh'"
    assert error_of(make_config(**{"mesh.fsdp": 2})) == message
    check_config(make_config(**{"mesh.fsdp": 2, "parallel": "mesh"}))


def test_average_with_batch_norm_needs_statistics():
    message = error_of(make_config(ema_decay=0.9))
    assert message.endswith(
        "computed for them: give the number of batches, as --config.precise_bn_batches=16"
    )
    check_config(make_config(ema_decay=0.9, precise_bn_batches=1))


def test_model_may_be_that_of_the_pretrained_weights():
    check_config(make_config(model="", pretrained="runs/x"))


@pytest.mark.parametrize("keys", [{"freeze_batch_norm": True}, {"batch_norm": "frozen"}])
def test_average_with_frozen_statistics_needs_no_others(keys):
    check_config(make_config(ema_decay=0.9, **keys))


def test_average_without_batch_norm_needs_no_statistics():
    group_norm = {"spec.norm": "group", "spec.stem_width": 32, "spec.widths": (32, 64, 128)}
    check_config(make_config(ema_decay=0.9, **group_norm))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model": "resnet51"}, "unknown model 'resnet51': did you mean"),
        ({"dtype": "float8"}, "unknown dtype 'float8'"),
        ({"spec.shortcut": "E"}, "unknown shortcut 'E'"),
        ({"spec.depths": (0, 1, 1)}, "depths"),
        ({"data.pad_crop": -1}, "pad_crop"),
        ({"data.rand_augment": (1,)}, "rand_augment"),
        ({"data.auto_augment": "rand-z"}, "where 'z' is not valid"),
        ({"data.color_jitter": (1.0,)}, "color_jitter"),
        ({"data.random_erasing": 2.0}, "random_erasing"),
        ({"data.cutout": -1}, "cutout"),
        ({"data.mixup": -1.0}, "mixup"),
        ({"data.cutmix": -1.0}, "cutmix"),
    ],
)
def test_values_are_checked_by_their_builders(keys, message):
    assert message in error_of(make_config(**keys))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochss": 3}, "unknown config key 'config.epochss': did you mean config.epochs"),
        (
            {"data": {"data_dirr": ""}},
            "unknown config key 'config.data.data_dirr': did you mean config.data.data_dir",
        ),
        ({"epochs": "3"}, "config.epochs is '3': expected an integer"),
        ({"epochs": True}, "config.epochs is True: expected an integer"),
        ({"nesterov": 1}, "config.nesterov is 1: expected True or False"),
        ({"learning_rate": "0.1"}, "config.learning_rate is '0.1': expected a number"),
        ({"decay_epochs": 3}, "config.decay_epochs is 3: expected a tuple"),
        ({"model": 3}, "config.model is 3: expected a text"),
        ({"data": 3}, "unknown config key 'config.data'"),
    ],
)
def test_unknown_keys_and_wrong_types_raise_user_errors(change, message):
    values = default_config().to_dict()
    for key, value in change.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    with pytest.raises(UserError, match=re.escape(message)):
        check_config(ConfigDict(values))


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(sorted(flatten_config(default_config()))))
def test_missing_key_is_named(key):
    values = default_config().to_dict()
    *groups, name = key.split(".")
    group = values
    for part in groups:
        group = group[part]
    del group[name]
    if not group:  # the only key of its group
        return
    assert error_of(ConfigDict(values)) == f"config.{key} is missing: start from default_config()"


def test_only_spec_fields_that_are_set_override_the_model():
    model = build_model(default_config())
    changed = build_model(
        make_config(spec__shortcut="C", spec__zero_init=False, spec__depths=(1, 2, 3))
    )
    assert changed.spec == model.spec.override(shortcut="C", zero_init=False, depths=(1, 2, 3))
    assert changed.spec != model.spec


def test_default_config_has_no_augmentation_and_no_mixing():
    assert build_augment(default_config()) is None
    assert build_mix(default_config()) is None
    assert build_augment(make_config(data__flip=True)) is not None
    assert build_mix(make_config(data__cutmix=1.0)) is not None


def test_json_dict_is_the_config_in_json_values():
    config = make_config(decay_epochs=(3, 5))
    values = to_json_dict(config)
    assert values["decay_epochs"] == [3, 5]
    assert values["spec"]["depths"] is None
    flat = flatten_config(values)
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in flat.items()} == flatten_config(
        config
    )
