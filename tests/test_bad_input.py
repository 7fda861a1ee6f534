"""Invalid arguments: `train.py` prints one line and returns 2 before it computes."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from helpers.commands import assert_one_line, run_train

ROOT = Path(__file__).parents[1]

# Arguments, and a regular expression for the error.
ARGUMENTS = {
    "unknown model": (["--config.model=cifar_resnet21"], "cifar_resnet20 and cifar_resnet26"),
    "unknown dataset": (
        ["--config.dataset=digitss"],
        "unknown dataset 'digitss': did you mean digits",
    ),
    "unprepared dataset": (
        ["--config.dataset=mnist", "--config.data.data_dir=/nowhere"],
        "is not prepared in /nowhere",
    ),
    "unknown key": (
        ["--config.epoch=3"],
        "unknown config key 'config.epoch': did you mean config.epochs",
    ),
    "unknown nested key": (["--config.data.pad=3"], "unknown config key 'config.data.pad'"),
    "wrong type": (
        ["--config.epochs=ten"],
        "config.epochs is 'ten': expected an integer, 0 to 2\\*\\*31 - 1$",
    ),
    "float for an int": (
        ["--config.epochs=2.5"],
        "config.epochs is '2.5': expected an integer, 0 to",
    ),
    "int for a bool": (
        ["--config.nesterov=7"],
        "config.nesterov is '7': expected true or false$",
    ),
    "out of range": (
        ["--config.learning_rate=-1"],
        "config.learning_rate is -1.0: expected more than 0",
    ),
    "batch larger than the dataset": (
        ["--config.batch_size=1440"],
        "larger than the train split of 'digits', 1437 examples",
    ),
    "batch that devices cannot share": (
        ["--config.batch_size=60"],
        "is not a multiple of the 8 devices: use 56 or 64",
    ),
    "images too small for the stem": (
        ["--config.model=resnet18"],
        "8x8, too small for resnet18.*needs 17x17",
    ),
    "unknown optimizer": (["--config.optimizer=adagrad"], "unknown optimizer 'adagrad'"),
    "unknown schedule": (["--config.schedule=linear"], "unknown schedule 'linear'"),
    "unknown mask": (["--config.decay_mask=none"], "unknown decay_mask 'none'"),
    "unknown engine": (["--config.parallel=xmap"], "unknown parallel 'xmap'"),
    "unknown dtype": (["--config.dtype=float8"], "unknown dtype 'float8'"),
    "unknown shortcut": (["--config.spec.shortcut=E"], "unknown shortcut 'E'"),
    "unknown flag": (["--wrokdir=x"], "wrokdir"),
    "positional argument": (["digits"], "unexpected argument 'digits'"),
    "missing recipe": (["--config=configs/none.py"], "there is no config file 'configs/none.py'"),
    "unknown variant": (
        ["--config=configs/digits_efficient.py:nosuch"],
        "(?<=^error: )unknown variant of configs/digits_efficient.py 'nosuch'",
    ),
    "more cycles than steps": (
        ["--config.schedule=cosine_cycles", "--config.schedule_cycles=10000000"],
        "config.schedule_cycles is 10000000, but the run has",
    ),
    "shortcut that narrows channels": (
        ["--config.spec.stem_width=64"],
        "cannot be built for images.*cannot reduce",
    ),
    "bool in depths": (["--config.spec.depths=(True,1,1)"], "depths\\[0\\] is True"),
    "float8 dtype": (["--config.dtype=float8_e4m3fn"], "unknown dtype 'float8_e4m3fn'"),
    "float64 without x64": (["--config.dtype=float64"], "set JAX_ENABLE_X64=1"),
    "huge padding": (["--config.data.pad_crop=1073741824"], "expected a number of pixels"),
    "padding beyond the image": (["--config.data.pad_crop=9"], "at most the image's side, 8"),
    "infinite epoch": (["--config.decay_epochs=(1e309,)"], "expected increasing epochs"),
    "huge epochs": (["--config.epochs=" + "9" * 400], "expected 0 to"),
    "too many steps": (["--config.epochs=2147483647"], "steps are more than 2\\*\\*31 - 1"),
    "learning rate beyond float32": (["--config.learning_rate=1e300"], "in the range of float32"),
    "flag file": (["--flagfile=/nowhere"], "unknown flag '--flagfile=/nowhere'"),
    "config without a file": (["--config"], "--config needs a file"),
    "two recipes": (["--config=a.py", "--config", "b.py"], "--config is given 2 times"),
    "long file name": (["--workdir=" + "x" * 300], "cannot be written: File name too long"),
    "workdir below a file": (["--workdir=README.md/run"], "cannot be written"),
    "unknown resume": (
        ["--resume=sometimes"],
        "--resume is 'sometimes': expected auto or never",
    ),
    "one checkpoint to keep": (
        ["--config.checkpoint_max_to_keep=1"],
        "expected 2 or more, since the last one can be corrupt",
    ),
    "negative minutes": (["--config.checkpoint_every_minutes=-1"], "expected 0 or more"),
    "unknown on_nonfinite": (["--config.on_nonfinite=ignore"], "expected one of stop, skip"),
    "max_consecutive_nonfinite 0": (["--config.max_consecutive_nonfinite=0"], "expected 1 to"),
    "num_processes alone": (["--num_processes=2"], "need --distributed"),
    "fsdp under pmap": (["--config.mesh.fsdp=2"], "expected 'mesh'"),
    "fsdp that does not divide the devices": (
        ["--config.parallel=mesh", "--config.mesh.fsdp=3"],
        "expected a divisor of the number of devices, 8",
    ),
    "seed beyond 32 bits": (["--config.seed=4294967296"], "expected 0 to 2\\*\\*32 - 1"),
    "batch size 0": (["--config.batch_size=0"], "batch_size is 0: expected 1"),
    "momentum 1": (["--config.momentum=1"], "momentum is 1.0: expected 0 to less than 1"),
    "negative weight decay": (
        ["--config.weight_decay=-1"],
        "weight_decay is -1.0: expected 0 or more",
    ),
    "label smoothing 1": (["--config.label_smoothing=1"], "expected 0 to less than 1"),
    "EMA decay 1": (["--config.ema_decay=1"], "expected 0 to less than 1"),
    "EMA without precise BN": (["--config.ema_decay=0.9"], "--config.precise_bn_batches=16"),
    "warm-up longer than the run": (["--config.warmup_epochs=99"], "at most config.epochs, 25"),
    "decreasing decay epochs": (["--config.decay_epochs=(3,2)"], "expected increasing epochs"),
    "decay during warm-up": (
        ["--config.schedule=step", "--config.decay_epochs=(1,)", "--config.warmup_epochs=2"],
        "expected none before config.warmup_epochs, 2.0",
    ),
    "learning rate NaN": (["--config.learning_rate=nan"], "in the range of float32"),
    "negative clip norm": (["--config.grad_clip=-1"], "expected 0 or more"),
    "polynomial power 0": (["--config.polynomial_power=0"], "expected more than 0"),
    "trust coefficient 0": (["--config.trust_coefficient=0"], "expected more than 0"),
    "micro-batches that do not divide the batch": (["--config.grad_accum_steps=3"], "use 48 or 72"),
    "log_every_steps 0": (["--config.log_every_steps=0"], "expected 1 to"),
    "eval_every_epochs 0": (["--config.eval_every_epochs=0"], "expected 1 to"),
    "negative checkpoint_every_steps": (["--config.checkpoint_every_steps=-1"], "expected 0 to"),
    "stage without blocks": (
        ["--config.spec.depths=(0,1,1)"],
        "depths\\[0\\] is 0: expected an integer from 1",
    ),
    "fewer widths than depths": (["--config.spec.widths=(16,32)"], "differ in length"),
    "unknown norm": (["--config.spec.norm=layer"], "unknown norm 'layer': expected one of"),
    "empty model name": (
        ["--config.model="],
        "config.pretrained is '': .* as config.model, which is '' too",
    ),
    "tiny images": (["--config.data.image_size=4"], "expected -1, 0, or 8 to 4096"),
    "negative number of workers": (["--config.data.num_workers=-1"], "expected 0 to 1024"),
    "std 0": (["--config.data.std=(0.0,)"], "expected positive numbers"),
    "two channels": (["--config.data.channels=2"], "expected 0, 1 or 3"),
    "unknown on_bad_example": (
        ["--config.data.on_bad_example=ignore"],
        "expected one of raise, skip",
    ),
    "unknown placement": (["--config.data.placement=gpu"], "expected one of auto, host, device"),
    "RandAugment without magnitude": (
        ["--config.data.rand_augment=(1,)"],
        "expected layers .* and magnitude",
    ),
    "color jitter with one value": (
        ["--config.data.color_jitter=(1.0,)"],
        "expected widths of brightness",
    ),
    "erasing probability 2": (["--config.data.random_erasing=2"], "expected a probability"),
    "negative cutout": (["--config.data.cutout=-1"], "expected a number of pixels"),
    "negative mixup": (["--config.data.mixup=-1"], "expected an alpha"),
    "mixup of odd batches": (
        ["--config.data.mixup=0.2", "--config.batch_size=8"],
        "batch_size 8 is not a multiple of twice the 8 devices",
    ),
    "ensemble of size 0": (["--config.ensemble.size=0"], "ensemble.size is 0: expected 1 to"),
    "ensemble of a million": (
        ["--config.ensemble.size=1000000"],
        "ensemble.size is 1000000: expected 1 to 1024",
    ),
    "member's value that is 0 in float32": (
        ["--config.ensemble.size=2", "--config.ensemble.learning_rate=(1e-60, 0.1)"],
        "learning_rate\\[0\\] is 1e-60: expected a number in the range of float32",
    ),
    "shared start of one network": (
        ["--config.ensemble.share_init=True"],
        "share_init is True, but config.ensemble.size is 1: set the size",
    ),
    "list of another length": (
        ["--config.ensemble.size=3", "--config.ensemble.learning_rate=(0.1, 0.2)"],
        "ensemble.learning_rate has 2 values, \\(0.1, 0.2\\), but config.ensemble.size is 3",
    ),
    "list for a single network": (
        ["--config.ensemble.mixup=(0.1,)"],
        "but config.ensemble.size is 1: set config.data.mixup, or the size",
    ),
    "invalid value of a member": (
        ["--config.ensemble.size=2", "--config.ensemble.label_smoothing=(0.1, 1.0)"],
        "ensemble.label_smoothing\\[1\\] is 1.0: expected 0 to less than 1",
    ),
    "text for a member": (
        ["--config.ensemble.size=2", "--config.ensemble.learning_rate=(0.1, 'a')"],
        "ensemble.learning_rate\\[1\\] is 'a': expected a number",
    ),
    "batch size by member": (
        ["--config.ensemble.batch_size=(32, 64)"],
        "batch_size is the same for all members, which can differ in learning_rate",
    ),
    "model by member": (
        ["--config.ensemble.model=('cifar_resnet8', 'cifar_resnet20')"],
        "model is the same for all members.*: set config.model",
    ),
    "equal members": (
        ["--config.ensemble.size=2", "--config.ensemble.seeds=(3, 3)"],
        "members 0 and 1 would be equal",
    ),
    "members that share every seed": (
        [
            "--config.ensemble.size=2",
            "--config.ensemble.share_init=True",
            "--config.ensemble.share_order=True",
            "--config.ensemble.share_augment=True",
        ],
        "would be equal with config.ensemble.share_init",
    ),
    "learning rates of members and head": (
        [
            "--config.ensemble.size=2",
            "--config.ensemble.learning_rate=(0.1, 0.2)",
            "--config.head_learning_rate=0.3",
        ],
        "expected one of them",
    ),
    "fsdp with an ensemble": (
        ["--config.ensemble.size=2", "--config.parallel=mesh", "--config.mesh.fsdp=2"],
        "config.mesh.fsdp is 2 with config.ensemble.size=2",
    ),
    "drop path of a member without shortcuts": (
        [
            "--config.ensemble.size=2",
            "--config.ensemble.drop_path=(0.0, 0.1)",
            "--config.spec.shortcut=none",
        ],
        "a network without shortcuts needs every branch",
    ),
    "devices that members cannot share": (
        ["--config.ensemble.size=3", "--config.ensemble.member_devices=2"],
        "config.ensemble.member_devices is 2: 3 members on 8 devices need 1",
    ),
    "unknown method": (["--config.ensemble.method=pmap"], "expected one of auto, vmap, map"),
    "unknown on_diverged": (
        ["--config.ensemble.on_diverged=skip"],
        "expected one of drop, freeze, stop",
    ),
    "fake dataset without channels": (
        ["--config.dataset=fake:1x1"],
        "expected fake:HEIGHTxWIDTHxCHANNELS",
    ),
    "missing dataset folder": (
        ["--config.dataset=folder:/nowhere"],
        "folder /nowhere does not exist",
    ),
    "folder without splits": (
        ["--config.dataset=folder:configs"],
        "configs contains .*, no training split: expected train/CLASS",
    ),
    "missing weights file": (
        ["--config.pretrained=/nowhere.safetensors"],
        "file not found: /nowhere.safetensors",
    ),
    "text file for weights": (["--config.pretrained=README.md"], "README.md is not a weights file"),
    "workdir in /proc": (["--workdir=/proc/x"], "workdir /proc/x cannot be written"),
    "workdir under a device": (["--workdir=/dev/null/x"], "cannot be written"),
    "no coordinator": (["--distributed", "--num_processes=2"], "expected all of --coordinator"),
    "process_id out of range": (
        ["--distributed", "--coordinator=x:1", "--num_processes=2", "--process_id=5"],
        "--process_id is 5: expected 0 to 1",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", ARGUMENTS)
def test_invalid_arguments_are_one_line_before_compute(case, monkeypatch, capsys, tmp_path):
    arguments, message = ARGUMENTS[case]
    monkeypatch.chdir(ROOT)
    workdir = [] if any("workdir" in arg for arg in arguments) else [f"--workdir={tmp_path}/run"]
    status = run_train(*arguments, *workdir)
    assert_one_line(message, status, *capsys.readouterr())
    assert list(tmp_path.iterdir()) == []


CONSOLE_SCRIPT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"][
    "resflax"
]
MODULE, FUNCTION = CONSOLE_SCRIPT.split(":")
COMMANDS = {
    "train.py": ["train.py"],
    "python -m resflax": ["-m", "resflax", "train"],
    "resflax": ["-c", f"import sys, {MODULE}; sys.exit({MODULE}.{FUNCTION}())", "train"],
}


@pytest.mark.slow
@pytest.mark.parametrize("case", ["unknown model", "unknown flag", "images too small for the stem"])
def test_entry_points_print_the_same_error(case, tmp_path):
    arguments, message = ARGUMENTS[case]
    processes = {
        name: subprocess.Popen(
            [sys.executable, *command, *arguments, f"--workdir={tmp_path}/run"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, command in COMMANDS.items()
    }
    outputs = {name: process.communicate() for name, process in processes.items()}
    assert len(set(outputs.values())) == 1, outputs
    for process in processes.values():
        assert_one_line(message, process.returncode, *outputs["train.py"])
    assert list(tmp_path.iterdir()) == []
