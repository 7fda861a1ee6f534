"""Invalid files: `train.py` prints one line, returns 2 before it computes, and changes nothing."""

from pathlib import Path

import numpy as np
import pytest
from helpers.commands import assert_one_line, run_train
from helpers.image_folders import constant_image, encode_png, write_folder

ROOT = Path(__file__).parents[1]
NOISE = encode_png(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
VALID = {
    f"{split}/{c}/{i}.png": constant_image(i, 8, 8)
    for split in ("train", "test")
    for c in "ab"
    for i in range(8)
}

# Changes to the files of `VALID`, arguments, and a regular expression for the error. None removes a
# folder; "{here}" is the folder.
FILES = {
    "truncated image": (
        {"train/b/3.png": NOISE[:-40]},
        [],
        "train/b/3.png: is not a readable image",
    ),
    "empty image": ({"train/b/3.png": b""}, [], "train/b/3.png: is empty"),
    "garbage for an image": (
        {"train/b/3.jpg": b"\xff\xd8 no"},
        [],
        "train/b/3.jpg: is not a readable",
    ),
    "image one pixel wide": (
        {"train/b/3.png": constant_image(3, 8, 1)},
        [],
        "3.png: is 1x8 pixels",
    ),
    "images of different sizes": (
        {"train/b/3.png": constant_image(3, 9, 9)},
        [],
        "3.png: has 9x9 pixels, but the first image has 8x8",
    ),
    "video among images": ({"train/b/x.mp4": b""}, [], "x.mp4: does not have the suffix of an"),
    "class without training images": (
        {"test/c/1.png": constant_image(1, 8, 8)},
        [],
        "test/c: is a class that the training",
    ),
    "class without images": ({"train/c/.hidden": b""}, [], "train/c"),
    "fewer images than a batch": ({}, ["--config.batch_size=64"], "larger than the train split"),
    "empty weights": (
        {"w.safetensors": b""},
        ["--config.pretrained={here}/w.safetensors"],
        "w.safetensors",
    ),
    "garbage for weights": (
        {"w.safetensors": b"no weights at all, but long enough"},
        ["--config.pretrained={here}/w.safetensors"],
        "w.safetensors",
    ),
    "garbage for torch weights": (
        {"w.pth": b"no weights at all"},
        ["--config.pretrained={here}/w.pth"],
        "w.pth",
    ),
    "file for a workdir": ({"run": b""}, [], "workdir {here}/run cannot be written"),
    "run without config.json": (
        {"run/metrics.jsonl": b""},
        [],
        "has metrics.jsonl of a run but no config.json",
    ),
    "truncated config.json": (
        {"run/config.json": b'{"epochs": 3, '},
        [],
        "has a corrupt config.json",
    ),
    "run with another config": ({"run/config.json": b"{}"}, [], "has a run with another config"),
}


@pytest.mark.parametrize("case", FILES)
def test_invalid_files_are_one_line_and_unchanged(case, capsys, tmp_path):
    files, arguments, message = FILES[case]
    removed = [name for name, content in files.items() if content is None]
    valid = {name: image for name, image in VALID.items() if name.split("/")[0] not in removed}
    write_folder(tmp_path, valid | {k: v for k, v in files.items() if v is not None})
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    arguments = [argument.replace("{here}", str(tmp_path)) for argument in arguments]
    status = run_train(
        f"--config={ROOT}/configs/digits.py",
        f"--config.dataset=folder:{tmp_path}",
        "--config.batch_size=8",
        "--config.model=cifar_resnet8",
        f"--workdir={tmp_path}/run",
        *arguments,
    )
    assert_one_line(message.replace("{here}", str(tmp_path)), status, *capsys.readouterr())
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before
