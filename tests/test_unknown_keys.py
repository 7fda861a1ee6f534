"""Unknown keys and flags, and the names of other tools, are one line with what is meant."""

import pytest
from helpers.commands import run_train
from ml_collections import ConfigDict

from resflax import UserError
from resflax.train import check_config, default_config
from resflax.train.config_keys import KEYS
from resflax.train.key_aliases import ADVICE, ALIASES, FLAGS
from resflax.train.unknown_keys import canonical, unknown_key

# Names of other tools, and the key or flag that is suggested.
MEANT = {
    "lr": "learning_rate", "wd": "weight_decay", "bs": "batch_size", "num_epochs": "epochs",
    "max_epochs": "epochs", "img_size": "data.image_size", "resolution": "data.image_size",
    "opt": "optimizer", "sched": "schedule", "lr_scheduler": "schedule",
    "smoothing": "label_smoothing", "mixup_alpha": "data.mixup", "reprob": "data.random_erasing",
    "aa": "data.auto_augment", "workers": "data.num_workers", "clip_grad": "grad_clip",
    "gradient_clip_val": "grad_clip", "clipnorm": "grad_clip",
    "model_ema_decay": "ema_decay", "arch": "model", "drop_path_rate": "spec.drop_path",
    "gradient_accumulation_steps": "grad_accum_steps", "flip": "data.flip",
    "optimizer.learning_rate": "learning_rate", "data.batch_size": "batch_size",
    "data.inception_crop": "data.train_crop",
    "numEpochs": "epochs", "Learning-Rate": "learning_rate", "learnin_rate": "learning_rate",
    "drop_path": "spec.drop_path", "mixup": "data.mixup", "val_split": "data.validation",
    "ensemble.lr": "ensemble.learning_rate", "ensemble.wd": "ensemble.weight_decay",
    "optimizer.name": "optimizer", "model.name": "model", "scheduler.type": "schedule",
    "input_shape": "data.image_size", "data.data_dirr": "data.data_dir", "epocs": "epochs",
}  # fmt: skip
# Names that correspond to no key, and a part of the advice.
ADVISED = {
    "num_classes": "the classes are those of the dataset",
    "device": "JAX_PLATFORMS=cpu",
    "gpus": "CUDA_VISIBLE_DEVICES",
    "monitor": "the best checkpoint is that of the highest accuracy",
    "data.path": "config.dataset=folder:PATH",
    "amp": "config.dtype=bfloat16",
    "data_path": "config.dataset=folder:PATH",
    "checkpoint": "--workdir",
    "resume_from": "config.pretrained",
    "warmup_steps": "config.warmup_epochs",
    "early_stopping": "config.epochs",
    "output": "--workdir",
    "log_dir": "--workdir",
}
# Words of a command line, and what is suggested.
WORDS = {
    ("--lr=0.1",): "--config.learning_rate=0.1?",
    ("--epochs=3",): "--config.epochs=3?",
    ("--epochs", "3"): "--config.epochs=3?",
    ("--model", "resnet50"): "--config.model=resnet50?",
    ("-b", "64"): "--config.batch_size=64?",
    ("--output=runs/x",): "--workdir=runs/x?",
    ("--log-dir", "x"): "--workdir=x?",
    ("--img-size=64",): "--config.data.image_size=64?",
    ("--hflip=0.5",): "--config.data.flip?",
    ("--aa", "rand-m9"): "--config.data.auto_augment=rand-m9?",
    ("--num-classes=10",): "the classes are those of the dataset",
    ("--pretrained=True",): "did you mean --config.pretrained?",
    ("tests",): "; a folder of images is --config.dataset=folder:tests",
    ("--config.data=photos",): "config.data is a group of keys: config.dataset=folder:PATH reads a",
    (
        "--config.ensemble=5",
    ): "config.ensemble is a group of keys: did you mean config.ensemble.size?",
    ("--config=digit",): "there is no config file 'digit': did you mean configs/digits.py",
    ("--config.model=resnet18.pth",): "without .pth: a file of weights is given to load_pretrained",
    ("--config.pretrained=True",): "nor a tagged name, such as resnet50.a1_in1k",
    ("--wrkdir=x",): "--workdir=x?",
    ("--nonsense",): "expected --config.KEY=VALUE, --config",
    ("--resume=last.pth",): "--resume is 'last.pth': expected auto or never (the same --workdir",
}


def assert_one_line(message, part):
    assert part in message
    assert "\n" not in message
    assert len(message) < 250


@pytest.mark.parametrize("name", MEANT)
def test_name_of_another_tool_suggests_the_key(name):
    message = str(unknown_key(name))
    assert message == f"unknown config key 'config.{name}': did you mean config.{MEANT[name]}?"


@pytest.mark.parametrize("name", ADVISED)
def test_name_without_a_key_is_explained(name):
    assert_one_line(str(unknown_key(name)), ADVISED[name])


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_flag_without_config_suggests_the_key(words, capsys, tmp_path):
    assert run_train(*words, f"--workdir={tmp_path}/run") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert_one_line(err.rstrip("\n"), WORDS[words])
    assert list(tmp_path.iterdir()) == []


def test_unknown_key_of_the_command_line_and_of_a_config(capsys, tmp_path):
    assert run_train("--config.lr=0.1", f"--workdir={tmp_path}/run") == 2
    expected = "unknown config key 'config.lr': did you mean config.learning_rate?"
    assert capsys.readouterr().err == f"error: {expected}\n"
    with pytest.raises(UserError) as e:
        check_config(ConfigDict(default_config().to_dict() | {"lr": 0.1}))
    assert str(e.value) == expected


@pytest.mark.parametrize("line", ["config.lr = 1", "config.data.lr = 1", "config.update(lr=1)"])
def test_unknown_key_of_a_recipe_is_explained(line, capsys, tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from resflax.train import default_config\n"
        f"def get_config():\n    config = default_config()\n    {line}\n    return config\n"
    )
    assert run_train(f"--config={recipe}") == 2
    assert_one_line(capsys.readouterr().err.replace(str(tmp_path), "").rstrip("\n"), "'config.lr'")


def test_name_that_nothing_resembles_points_to_help():
    assert str(unknown_key("zzz")).endswith("resflax train --help lists the keys")


def test_tables_of_names_are_consistent():
    assert set(ALIASES) <= set(KEYS)
    tables = [*ALIASES.values(), *FLAGS.values(), *ADVICE]
    names = [canonical(name) for text in tables for name in text.split()]
    assert sorted(names) == sorted(set(names))
    assert not {*names} & ({canonical(key) for key in KEYS} - {"datadir", "ensemble", "size"})
