"""A key without effect on what the others choose is refused, or set back if the recipe has it."""

import pytest
from helpers.commands import run_train

from resflax import UserError
from resflax.cli.flags import parse
from resflax.train import check_config, default_config
from resflax.train.config_keys import KEYS
from resflax.train.unused_keys import ROWS, unused_keys
from resflax.train.unused_spec import EFFECTS

FOLDER = {"dataset": "folder:D"}
STREAMED = {"dataset": "folder:D", "data.image_size": 32}
ENSEMBLE = {"ensemble.size": 2}
TEACHER = {"distill.teacher": "runs/x"}
FEATURES = {"distill.features": "pooled"}
WEIGHTS = {"pretrained": "runs/x"}
WIDTHS = {"spec.widths": (32, 64, 128), "spec.stem_width": 32}
# For each row of `ROWS`, in order: a key and value, keys that leave it without effect, and keys
# that give it one.
CASES = [
    ("learning_rate", 0.2, {"epochs": 0, **WEIGHTS}, {}),
    ("data.train_crop", "none", {"epochs": 0, **WEIGHTS, **STREAMED}, STREAMED),
    ("whiten_stem", True, WEIGHTS, {}),
    ("reset_head", True, {}, WEIGHTS),
    ("ghost_batch_size", 8, {"batch_norm": "per_device"}, {"batch_norm": "ghost"}),
    ("spec.zero_init", False, WEIGHTS, {}),
    ("momentum", 0.8, {"optimizer": "adamw"}, {"optimizer": "lars"}),
    ("nesterov", False, {"optimizer": "lamb"}, {"optimizer": "sgd"}),
    ("trust_coefficient", 0.1, {"optimizer": "lamb"}, {"optimizer": "lars"}),
    ("betas", (0.8, 0.9), {}, {"optimizer": "adamw"}),
    ("eps", 1e-3, {"optimizer": "lion"}, {"optimizer": "lamb"}),
    ("nesterov", False, {"momentum": 0.0}, {}),
    ("grad_clip_mode", "agc", {}, {"grad_clip": 0.01}),
    ("decay_mask", "all", {"weight_decay": 0.0}, {"weight_decay": 0.0, "optimizer": "lamb"}),
    ("weight_decay_factors", (("head", 0.5),), {"weight_decay": 0.0}, {}),
    ("max_consecutive_nonfinite", 3, {}, {"on_nonfinite": "skip"}),
    ("base_batch_size", 512, {}, {"learning_rate_scaling": "sqrt"}),
    ("ema_every_steps", 2, {}, {"ema_decay": 0.9, "precise_bn_batches": 1}),
    ("decay_epochs", (3,), {"schedule": "cosine"}, {"schedule": "step"}),
    (
        "decay_rate",
        0.5,
        {"schedule": "linear_onecycle"},
        {"schedule": "step", "decay_epochs": (3,)},
    ),
    ("plateau_patience", 3, {}, {"schedule": "plateau"}),
    ("polynomial_power", 2.0, {"schedule": "constant"}, {"schedule": "polynomial"}),
    ("schedule_cycles", 3, {"schedule": "cosine"}, {"schedule": "cosine_cycles"}),
    ("decay_rate", 0.5, {"schedule": "step"}, {"schedule": "step", "decay_epochs": (3,)}),
    ("min_learning_rate", 0.01, {"schedule": "step"}, {"schedule": "polynomial"}),
    ("warmup_learning_rate", 0.01, {}, {"warmup_epochs": 1.0}),
    ("steps_per_call", 8, {"data.placement": "host"}, {}),
    ("bce_target_threshold", 0.2, {}, {"loss": "bce"}),
    ("loss_sum_classes", True, {}, {"loss": "focal"}),
    ("focal_alpha", 0.5, {"loss": "bce"}, {"loss": "focal"}),
    ("focal_gamma", 1.0, {"loss": "bce"}, {"loss": "focal"}),
    ("jsd_weight", 6.0, {}, {"data.aug_splits": 2, "data.cutout": 2}),
    ("data.aug_splits", 3, {"data.flip": True}, {"data.cutout": 2}),
    ("distill.temperature", 2.0, {}, TEACHER),
    ("distill.feature_weight", 2.0, TEACHER, {**TEACHER, **FEATURES}),
    ("distill.temperature", 2.0, {**TEACHER, **FEATURES, "distill.weight": 0.0}, TEACHER),
    ("label_smoothing", 0.1, {**TEACHER, "distill.weight": 1.0}, TEACHER),
    ("precise_bn_batches", 2, {"freeze_batch_norm": True}, {}),
    ("precise_bn_batches", 2, {"spec.norm": "group", **WIDTHS}, {}),
    ("log_histograms_every_steps", 5, {"log_to": "csv"}, {"log_to": "csv,tensorboard"}),
    ("ensemble.learning_rate", (0.1, 0.2), {}, ENSEMBLE),
    ("ensemble.weight_decay", (0.1, 0.2), {}, ENSEMBLE),
    ("ensemble.label_smoothing", (0.1, 0.2), {}, ENSEMBLE),
    ("ensemble.mixup", (0.1, 0.2), {}, ENSEMBLE),
    ("ensemble.drop_path", (0.1, 0.2), {}, ENSEMBLE),
    ("ensemble.seeds", (3, 4), {}, ENSEMBLE),
    ("ensemble.method", "map", {}, ENSEMBLE),
    ("learning_rate", 0.2, {**ENSEMBLE, "ensemble.learning_rate": (0.1, 0.2)}, ENSEMBLE),
    ("weight_decay", 0.2, {**ENSEMBLE, "ensemble.weight_decay": (0.1, 0.2)}, ENSEMBLE),
    ("label_smoothing", 0.2, {**ENSEMBLE, "ensemble.label_smoothing": (0.1, 0.2)}, ENSEMBLE),
    ("data.mixup", 0.2, {**ENSEMBLE, "ensemble.mixup": (0.1, 0.2)}, ENSEMBLE),
    ("spec.drop_path", 0.2, {**ENSEMBLE, "ensemble.drop_path": (0.1, 0.2)}, ENSEMBLE),
    ("seed", 3, {**ENSEMBLE, "ensemble.seeds": (1, 2)}, ENSEMBLE),
    ("ensemble.share_augment", True, ENSEMBLE, {**ENSEMBLE, "data.flip": True}),
    ("parallel", "mesh", ENSEMBLE, {}),
    ("data.image_size", 64, {}, FOLDER),
    ("data.data_dir", "D", FOLDER, {"dataset": "mnist"}),
    ("data.eval_size", 64, FOLDER, STREAMED),
    ("data.train_crop", "squash", FOLDER, STREAMED),
    ("data.mixup_mode", "batch", {}, {"data.cutmix": 1.0}),
    ("data.mixup_switch_prob", 0.3, {"data.mixup": 0.2}, {"data.mixup": 0.2, "data.cutmix": 1.0}),
    ("data.train_interpolation", "random", FOLDER, STREAMED),
    ("data.crop_scale", (0.5, 1.0), FOLDER, {"data.train_crop": "inception"}),
    ("data.placement", "host", STREAMED, FOLDER),
    ("data.train_split", "train[:9]", {"dataset": "fake"}, {}),
    ("data.image_key", "image", FOLDER, {"dataset": "mnist"}),
    ("data.validation_seed", 3, {}, {"data.validation": 0.1}),
]
# Further keys of rows with several, as in `CASES`.
MORE = [
    ("data.channels", 3, {"dataset": "digits"}, FOLDER),
    ("data.image_key", "left", {}, {"dataset": "hf:D"}),
    ("data.data_dir", "D", {"dataset": "csv:D.csv"}, {"dataset": "mnist"}),
    ("data.validation_split", "train[:9]", {"dataset": "fake"}, {"dataset": "mnist"}),
    ("data.test_split", "train[:9]", {"dataset": "fake"}, FOLDER),
    ("data.label_key", "label", {"dataset": "digits"}, {"dataset": "hf:D"}),
    ("data.channels", 3, {"dataset": "fake:8x8x3:2:16"}, STREAMED),
    ("data.on_bad_example", "skip", {}, FOLDER),
    ("data.data_dir", "D", {}, {"dataset": "mnist:3.*.*"}),
    ("data.num_workers", 2, {"dataset": "mnist"}, STREAMED),
    ("data.crop_pct", 0.5, {}, STREAMED),
    ("data.interpolation", "bicubic", FOLDER, STREAMED),
    ("data.placement", "device", STREAMED, {}),
    ("data.crop_ratio", (0.5, 2.0), {**STREAMED, "data.train_crop": "resize"}, STREAMED),
    ("data.mixup_off_epoch", 5, {}, {"data.mixup": 0.2}),
    ("data.mixup_prob", 0.5, {}, {**ENSEMBLE, "ensemble.mixup": (0.1, 0.2)}),
    (
        "data.train_interpolation", "bicubic", {**STREAMED, "data.train_crop": "none"},
        {**STREAMED, "data.train_crop": "squash"},
    ),
    ("data.crop_mode", "squash", {}, STREAMED),
    ("data.train_crop", "resize", {}, STREAMED),
    (
        "warmup_learning_rate", 0.01,
        {"warmup_epochs": 1.0, "schedule": "linear_onecycle"},
        {"warmup_epochs": 1.0},
    ),
    ("distill.features", "pooled", {}, TEACHER),
    ("plateau_threshold", 0.1, {"schedule": "step"}, {"schedule": "plateau"}),
    ("decay_rate", 0.5, {}, {"schedule": "plateau"}),
    ("ema_start_step", 2, {}, {"ema_decay": 0.9, "precise_bn_batches": 1}),
    ("ema_warmup", "none", {}, {"ema_decay": 0.9, "precise_bn_batches": 1}),
    ("data.flip", True, {"epochs": 0, **WEIGHTS}, {}),
    ("grad_clip", 1.0, {"epochs": 0, **WEIGHTS}, {}),
    ("ensemble.on_diverged", "stop", {}, ENSEMBLE),
    ("ensemble.member_devices", 1, {}, ENSEMBLE),
    ("ensemble.share_init", True, {}, ENSEMBLE),
    ("ensemble.share_augment", True, {}, {**ENSEMBLE, "spec.dropout": 0.1}),
    ("spec.base_width", 65, {"spec.widths": (8, 16, 32)}, {"spec.widths": (8, 16, 64)}),
    ("spec.output_stride", 16, {"model": "cifar_resnet8"}, {"model": "resnet18"}),
    ("spec.zero_init", False, {"model": "plain18"}, {"model": "resnet18"}),
    ("spec.norm_epsilon", 1e-3, {"spec.norm": "frn_tlu"}, {}),
    ("spec.norm_momentum", 0.99, {"spec.norm": "frn_tlu"}, {}),
    (
        "spec.activation", "silu",
        {"model": "resnetv2_18", "spec.norm": "evonorm_s0"},
        {"model": "resnet18", "spec.norm": "evonorm_s0"},
    ),
    (
        "spec.antialias", "blur",
        {"spec.depths": (2,), "spec.widths": (16,)},
        {"spec.depths": (2, 2), "spec.widths": (16, 16)},
    ),
]  # fmt: skip
# Keys that always have an effect, or whose other values `check_config` refuses by itself.
ALWAYS = {
    "model", "pretrained", "dtype", "scan", "dataset", "batch_size", "epochs", "data.validation",
    "data.mean", "data.std", "eval_sets", "eval_tta", "mesh.fsdp", "ensemble.size",
    "spec.depths", "spec.widths",
    "spec.block", "spec.stem", "spec.stem_width", "spec.shortcut", "spec.gate", "spec.preact",
    "spec.order", "spec.dimensions", "log_to",
    "spec.attention", "spec.norm", "spec.conv", "spec.ensemble", "spec.members", "spec.alpha",
    "spec.batch_repetition", "spec.input_repetition", "spec.pooling", "spec.head",
}  # fmt: skip


def make_config(keys):
    config = default_config()
    config.update_from_flattened_dict(keys)
    return config


def name_case(case):
    return f"{case[0]}={case[1]}"


@pytest.mark.parametrize("case", [*CASES, *MORE], ids=name_case)
def test_key_without_effect_is_refused(case):
    key, value, without, with_effect = case
    config = make_config({**without, key: value})
    assert [k for k, _ in unused_keys(config)] == [key]
    with pytest.raises(UserError) as e:
        check_config(config)
    message = str(e.value)
    assert message.startswith(f"config.{key} is {value!r}, but ")
    assert "\n" not in message
    assert len(message) < 200
    assert list(unused_keys(make_config({**with_effect, key: value}))) == []


@pytest.mark.parametrize("case", [*CASES, *MORE], ids=name_case)
def test_default_without_effect_is_accepted(case):
    key, _, without, _ = case
    check_config(
        make_config({**without, key: KEYS[key].default} if KEYS[key].kind is None else without)
    )


def test_cases_cover_each_row():
    assert [case[0] for case in CASES] == [
        next(key for key in row.keys if key == case[0])
        for row, case in zip(ROWS, CASES, strict=True)
    ]


def test_keys_are_always_used_or_have_a_row():
    with_rule = {key for row in ROWS for key in row.keys} | {f"spec.{field}" for field in EFFECTS}
    assert with_rule <= set(KEYS)
    assert set(KEYS) == with_rule | ALWAYS
    assert not with_rule & ALWAYS


RECIPE = """
from resflax.train import default_config
def get_config():
    config = default_config()
    config.momentum = 0.8
    config.schedule = "step"
    config.decay_epochs = (3,)
    config.ensemble.size = 2
    config.ensemble.seeds = (3, 4)
    return config
"""


def test_recipe_keys_that_lose_their_effect_are_set_back(tmp_path):
    (tmp_path / "recipe.py").write_text(RECIPE)
    recipe = f"--config={tmp_path}/recipe.py"
    assert parse([recipe]).notes == ()
    command = parse([recipe, "--config.optimizer=adamw", "--config.ensemble.size=1"])
    assert command.notes == (
        "set back to the default, since the command line leaves no use for it:"
        " config.ensemble.seeds, config.momentum",
    )
    assert (command.config.momentum, command.config.ensemble.seeds) == (0.9, ())
    assert command.config.decay_epochs == (3,)
    check_config(command.config)


def test_key_given_on_the_command_line_is_refused(capsys, tmp_path):
    (tmp_path / "recipe.py").write_text(RECIPE)
    recipe = f"--config={tmp_path}/recipe.py"
    flags = ["--config.optimizer=adamw", "--config.momentum=0.7", f"--workdir={tmp_path}/run"]
    assert run_train(recipe, *flags) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "error: config.momentum is 0.7, but config.optimizer='adamw' has none: leave it out, or use"
        " sgd or lars or rmsprop or muon or schedule_free_sgd\n"
    )
    assert not (tmp_path / "run").exists()


def test_recipe_with_a_key_without_effect_is_refused(capsys, tmp_path):
    (tmp_path / "recipe.py").write_text(RECIPE.replace('"step"', '"cosine"'))
    assert run_train(f"--config={tmp_path}/recipe.py", "--config.optimizer=adamw") == 2
    assert (
        "config.decay_epochs is (3,), but config.schedule='cosine' has none"
        in capsys.readouterr().err
    )


EQUAL = {**ENSEMBLE, "ensemble.share_init": True, "ensemble.share_order": True}


@pytest.mark.parametrize(
    "keys",
    [
        {"data.flip": True}, {"spec.dropout": 0.1}, {"data.cutmix": 1.0}, STREAMED,
        {"ensemble.learning_rate": (0.1, 0.2)}, {"ensemble.share_order": False},
    ],
    ids=str,
)  # fmt: skip
def test_members_that_nothing_distinguishes_are_refused(keys):
    with pytest.raises(
        UserError, match=r"members 0 and 1 would be equal with config.ensemble.share_init"
    ) as e:
        check_config(make_config(EQUAL))
    assert "and without random augmentation, drop path or dropout: expected" in str(e.value)
    check_config(make_config({**EQUAL, **keys}))


@pytest.mark.parametrize("crop", ["squash", "none"])
def test_crops_that_are_not_random_distinguish_no_members(crop):
    with pytest.raises(UserError, match="members 0 and 1 would be equal"):
        check_config(make_config({**EQUAL, **STREAMED, "data.train_crop": crop}))
