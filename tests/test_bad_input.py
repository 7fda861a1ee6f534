"""What users may get wrong, on the command line and in data: each is one line and status 2."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import run_train
from helpers.image_folders import constant_image, encode_png, write_folder

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

# Arguments, and what the error says, as a regular expression.
ARGUMENTS = {
    "unknown model": (["--config.model=cifar_resnet21"], "cifar_resnet20 and cifar_resnet26"),
    "unknown dataset": (
        ["--config.dataset=digitss"],
        "unknown dataset 'digitss': did you mean digits",
    ),
    "not prepared": (
        ["--config.dataset=mnist", "--config.data.data_dir=/nowhere"],
        "is not prepared in /nowhere",
    ),
    "unknown key": (
        ["--config.epoch=3"],
        "unknown config key 'config.epoch': did you mean config.epochs",
    ),
    "unknown nested key": (["--config.data.pad=3"], "unknown config key 'config.data.pad'"),
    "wrong type": (["--config.epochs=ten"], "--config.epochs=ten"),
    "fraction for a count": (["--config.epochs=2.5"], "--config.epochs=2.5"),
    "wrong bool": (["--config.nesterov=7"], "--config.nesterov=7"),
    "out of range": (
        ["--config.learning_rate=-1"],
        "config.learning_rate is -1.0: expected more than 0",
    ),
    "huge batch": (
        ["--config.batch_size=1440"],
        "larger than the train split of 'digits', 1437 examples",
    ),
    "odd batch": (["--config.batch_size=60"], "does not divide by 8 devices: use 56 or 64"),
    "small image": (["--config.model=resnet18"], "8x8 are too small for resnet18.*needs 17x17"),
    "unknown optimizer": (["--config.optimizer=lion"], "unknown optimizer 'lion'"),
    "unknown schedule": (["--config.schedule=linear"], "unknown schedule 'linear'"),
    "unknown mask": (["--config.decay_mask=none"], "unknown decay_mask 'none'"),
    "unknown engine": (["--config.parallel=xmap"], "unknown parallel 'xmap'"),
    "unknown dtype": (["--config.dtype=float8"], "unknown dtype 'float8'"),
    "unknown shortcut": (["--config.spec.shortcut=E"], "unknown shortcut 'E'"),
    "unknown flag": (["--wrokdir=x"], "wrokdir"),
    "stray word": (["digits"], "unexpected argument 'digits'"),
    "no such recipe": (["--config=configs/none.py"], "there is no config file 'configs/none.py'"),
    "no such shortcut": (["--config.spec.stem_width=64"], "cannot be built on.*cannot narrow"),
    "spec of a wrong kind": (["--config.spec.depths=(True,1,1)"], "depths[0] is True"),
    "small float": (["--config.dtype=float8_e4m3fn"], "unknown dtype 'float8_e4m3fn'"),
    "64 bits": (["--config.dtype=float64"], "set JAX_ENABLE_X64=1"),
    "huge padding": (["--config.data.pad_crop=1073741824"], "at most the image's side, 8"),
    "infinite epoch": (["--config.decay_epochs=(1e309,)"], "expected rising epochs"),
    "huge epochs": (["--config.epochs=" + "9" * 400], "expected from 1 to"),
    "too many steps": (["--config.epochs=2147483647"], "steps are too many"),
    "huge rate": (["--config.learning_rate=1e300"], "that float32 can hold"),
    "flag file": (["--flagfile=/nowhere"], "unknown flag '--flagfile=/nowhere'"),
    "config without file": (["--config"], "--config needs a file"),
    "two configs": (["--config=a.py", "--config", "b.py"], "--config is given 2 times"),
    "long name": (["--workdir=" + "x" * 300], "cannot be written: File name too long"),
    "unwritable place": (["--workdir=README.md/run"], "cannot be written"),
    "unknown resume": (["--resume=sometimes"], "--resume=sometimes.*<auto\\|never>"),
    "one checkpoint": (
        ["--config.checkpoint_max_to_keep=1"],
        "expected 2 or more: the last may be",
    ),
    "negative minutes": (["--config.checkpoint_every_minutes=-1"], "expected 0 or more"),
    "unknown action": (["--config.on_nonfinite=ignore"], "expected one of stop, skip"),
    "no drops": (["--config.max_consecutive_nonfinite=0"], "expected from 1 to"),
    "half a cluster": (["--num_processes=2"], "need --distributed"),
    "fsdp under pmap": (["--config.mesh.fsdp=2"], "expected 'mesh'"),
    "fsdp that does not fit": (
        ["--config.parallel=mesh", "--config.mesh.fsdp=3"],
        "a number that divides the 8 devices",
    ),
    "seed beyond 32 bits": (["--config.seed=4294967296"], "expected from 0 to 2\\*\\*32 - 1"),
    "no batch": (["--config.batch_size=0"], "batch_size is 0: expected from 1"),
    "whole momentum": (["--config.momentum=1"], "momentum is 1.0: expected from 0 to less than 1"),
    "growing weights": (["--config.weight_decay=-1"], "weight_decay is -1.0: expected 0 or more"),
    "all smoothed": (["--config.label_smoothing=1"], "expected from 0 to less than 1"),
    "endless average": (["--config.ema_decay=1"], "expected from 0 to less than 1"),
    "average without statistics": (["--config.ema_decay=0.9"], "--config.precise_bn_batches=16"),
    "warm-up beyond the end": (["--config.warmup_epochs=99"], "expected at most epochs, 25"),
    "falling steps": (["--config.decay_epochs=(3,2)"], "expected rising epochs"),
    "step in the warm-up": (
        ["--config.schedule=step", "--config.decay_epochs=(1,)", "--config.warmup_epochs=2"],
        "expected none before warmup_epochs, 2.0",
    ),
    "rate that is no number": (["--config.learning_rate=nan"], "that float32 can hold"),
    "negative norm": (["--config.grad_clip_norm=-1"], "expected 0 or more"),
    "flat polynomial": (["--config.polynomial_power=0"], "expected more than 0"),
    "no trust": (["--config.trust_coefficient=0"], "expected more than 0"),
    "odd parts of a batch": (["--config.grad_accum_steps=3"], "use 48 or 72"),
    "never logged": (["--config.log_every_steps=0"], "expected from 1 to"),
    "never evaluated": (["--config.eval_every_epochs=0"], "expected from 1 to"),
    "negative steps": (["--config.checkpoint_every_steps=-1"], "expected from 0 to"),
    "no blocks": (["--config.spec.depths=(0,1,1)"], "depths[0] is 0: expected an integer from 1"),
    "widths of fewer stages": (["--config.spec.widths=(16,32)"], "differ in length"),
    "unknown norm": (["--config.spec.norm=layer"], "unknown norm 'layer': expected one of"),
    "no model": (["--config.model="], "unknown model ''"),
    "tiny images": (["--config.data.image_size=4"], "expected 0, or from 8 to 4096"),
    "negative workers": (["--config.data.num_workers=-1"], "expected from 0 to 1024"),
    "no spread": (["--config.data.std=(0.0,)"], "expected numbers of more than 0"),
    "two channels": (["--config.data.channels=2"], "expected 0, 1 or 3"),
    "unknown care": (["--config.data.on_bad_example=ignore"], "expected one of raise, skip"),
    "unknown placement": (["--config.data.placement=gpu"], "expected one of auto, host, device"),
    "half a RandAugment": (["--config.data.rand_augment=(1,)"], "expected layers .* and magnitude"),
    "half a jitter": (["--config.data.color_jitter=(1.0,)"], "expected widths of brightness"),
    "sure erasing": (["--config.data.random_erasing=2"], "expected a probability"),
    "negative square": (["--config.data.cutout=-1"], "expected a number of pixels"),
    "negative mixup": (["--config.data.mixup=-1"], "expected an alpha"),
    "mixup without pairs": (
        ["--config.data.mixup=0.2", "--config.batch_size=8"],
        "batch_size 8 does not divide by twice the 8 devices",
    ),
    "noise of no size": (["--config.dataset=fake:1x1"], "expected fake:HEIGHTxWIDTHxCHANNELS"),
    "no such folder": (["--config.dataset=folder:/nowhere"], "folder /nowhere does not exist"),
    "folder of something else": (
        ["--config.dataset=folder:configs"],
        "configs contains .*: expected the folders train and test",
    ),
    "no such weights": (["--config.pretrained=/nowhere.safetensors"], "safetensors is neither a"),
    "no weights": (["--config.pretrained=README.md"], "README.md is not a weights file"),
    "workdir in /proc": (["--workdir=/proc/x"], "workdir /proc/x cannot be written"),
    "workdir under a device": (["--workdir=/dev/null/x"], "cannot be written"),
    "half an address": (["--distributed", "--num_processes=2"], "expected all of --coordinator"),
    "process of none": (
        ["--distributed", "--coordinator=x:1", "--num_processes=2", "--process_id=5"],
        "--process_id is 5: expected from 0 to 1",
    ),
}

NOISE = encode_png(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
SOUND = {
    f"{split}/{c}/{i}.png": constant_image(i, 8, 8)
    for split in ("train", "test")
    for c in "ab"
    for i in range(8)
}

# Files in a folder "{here}", arguments, and what the error says.
FILES = {
    "truncated image": (
        {"train/b/3.png": NOISE[:-40]},
        [],
        "train/b/3.png: is not a readable image",
    ),
    "image of nothing": ({"train/b/3.png": b""}, [], "train/b/3.png: is empty"),
    "garbage for an image": (
        {"train/b/3.jpg": b"\xff\xd8 no"},
        [],
        "train/b/3.jpg: is not a readable",
    ),
    "16 bits a pixel": (
        {"train/b/3.png": encode_png(np.zeros((8, 8), np.uint16))},
        [],
        "train/b/3.png: has more than 8 bits",
    ),
    "grey among colour": (
        {"train/b/3.png": encode_png(np.zeros((8, 8), np.uint8))},
        [],
        "train/b/3.png: has shape",
    ),
    "one pixel wide": ({"train/b/3.png": constant_image(3, 8, 1)}, [], "3.png: is 1x8 pixels"),
    "images of two sizes": ({"train/b/3.png": constant_image(3, 9, 9)}, [], "3.png: has shape"),
    "a note among images": ({"train/b/note.txt": b"hello"}, [], "note.txt: is not a .jpg"),
    "class that train lacks": (
        {"test/c/1.png": constant_image(1, 8, 8)},
        [],
        "test/c: is a class that the training",
    ),
    "class without images": ({"train/c/.hidden": b""}, [], "train/c"),
    "no test split": ({"test": None}, [], "expected the folders train and test"),
    "fewer images than a batch": ({}, ["--config.batch_size=64"], "larger than the train split"),
    "weights of nothing": (
        {"w.safetensors": b""},
        ["--config.pretrained={here}/w.safetensors"],
        "w.safetensors",
    ),
    "garbage for weights": (
        {"w.safetensors": b"no weights at all, but long enough"},
        ["--config.pretrained={here}/w.safetensors"],
        "w.safetensors",
    ),
    "garbage of torch's": (
        {"w.pth": b"no weights at all"},
        ["--config.pretrained={here}/w.pth"],
        "w.pth",
    ),
    "workdir that is a file": ({"run": b""}, [], "workdir {here}/run cannot be written"),
    "a run without its config": (
        {"run/metrics.jsonl": b""},
        [],
        "holds metrics.jsonl of a run but no config.json",
    ),
    "half a config": ({"run/config.json": b'{"epochs": 3, '}, [], "config.json that is damaged"),
    "a run of another kind": ({"run/config.json": b"{}"}, [], "holds a run of another config"),
}


def call(monkeypatch, capsys, *args):
    """Runs `train.py` in this process; returns its exit status, stdout and stderr."""
    status = run_train(*args)
    return status, *capsys.readouterr()


@pytest.mark.parametrize("case", ARGUMENTS)
def test_bad_arguments_are_one_line_and_status_2_before_any_compute(
    case, monkeypatch, capsys, tmp_path
):
    args, message = ARGUMENTS[case]
    monkeypatch.chdir(ROOT)
    workdir = [] if any("workdir" in arg for arg in args) else [f"--workdir={tmp_path}/run"]
    status, out, err = call(monkeypatch, capsys, *args, *workdir)
    assert status == 2
    assert re.match("error: .*" + message, err), err
    assert err.count("\n") == 1
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", FILES)
def test_bad_files_are_one_line_and_status_2_and_stay_as_they_are(
    case, monkeypatch, capsys, tmp_path
):
    files, args, message = FILES[case]
    gone = [name for name, content in files.items() if content is None]
    sound = {k: v for k, v in SOUND.items() if k.partition("/")[0] not in gone}
    write_folder(tmp_path, sound | {k: v for k, v in files.items() if v is not None})
    before = {p: p.is_file() and p.read_bytes() for p in tmp_path.rglob("*")}
    said = [f"--config.dataset=folder:{tmp_path}", "--config.batch_size=8", *args]
    said += ["--config.model=cifar_resnet8", f"--workdir={tmp_path}/run"]
    said = [arg.replace("{here}", str(tmp_path)) for arg in said]
    status, out, err = call(monkeypatch, capsys, *said)
    assert status == 2
    assert re.match("error: .*" + message.replace("{here}", str(tmp_path)), err), err
    assert err.count("\n") == 1
    assert out == ""
    assert {p: p.is_file() and p.read_bytes() for p in tmp_path.rglob("*")} == before
