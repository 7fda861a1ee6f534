"""Files, classes and folders with names that are not UTF-8 or hold control characters.

They go through training, evaluation and prediction, and into every file that these write.
"""

import csv
import io
import json
import os
import sys

import numpy as np
import pytest
from helpers.commands import run_command, run_train
from helpers.image_folders import encode_png

from resflax.cli.main import print_any_text

# Not UTF-8; a newline; decomposed accents.
CLASSES = (b"caf\xe9", "日本\n".encode(), "cafe\u0301".encode())
NAMES = ("caf\u00e9", r"caf\xe9", "日本\\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of two splits; one image of each is empty."""
    root = os.path.join(os.fsencode(tmp_path_factory.mktemp("names")), b"d\xe9 $x$")
    rng = np.random.default_rng(0)
    for split in (b"train", b"Valid"):
        for name in CLASSES:
            folder = os.path.join(root, split, name)
            os.makedirs(folder)
            for i in range(8):
                with open(os.path.join(folder, b"%d\xff\n\x1b[31m.png" % i), "wb") as file:
                    is_empty = name == CLASSES[0] and i == 0
                    pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
                    file.write(b"" if is_empty else encode_png(pixels))
    return os.fsdecode(root)


def is_one_printable_line(text):
    return text.isprintable() and text.encode()


@pytest.mark.slow
def test_names_of_any_bytes_pass_through_all_commands(folder, tmp_path, monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    print_any_text()
    run, out = tmp_path / "run", tmp_path / "out"
    status = run_train(
        f"--config.dataset=folder:{folder}",
        "--config.model=cifar_resnet8",
        "--config.batch_size=8",
        "--config.epochs=1",
        "--config.warmup_epochs=0",
        "--config.data.pad_crop=0",
        "--config.data.image_size=16",
        "--config.data.on_bad_example=skip",
        f"--workdir={run}",
    )
    assert status == 0
    assert (run / "results.json").exists()
    assert (run / "curves.png").exists()
    skipped = (run / "skipped.txt").read_text().splitlines()
    assert len(skipped) == json.loads((run / "results.json").read_text())["skipped_examples"] == 2
    assert all(map(is_one_printable_line, skipped))

    skip = "--on-bad-example=skip"
    predictions = tmp_path / "evaluated.csv"
    assert run_command("evaluate", run, f"--out={out}", skip, f"--predictions={predictions}") == 0
    report = json.loads((out / "evaluation.json").read_text())
    assert all(repr(name)[1:-1] in json.dumps(report, ensure_ascii=False) for name in NAMES[:1])
    with open(predictions, newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 23

    valid = os.path.join(folder, "Valid")
    for suffix in ("csv", "jsonl"):
        table = tmp_path / f"predicted.{suffix}"
        arguments = (valid, f"--weights={run}", skip, f"--out={table}", f"--sheet={tmp_path}/s.png")
        assert run_command("predict", *arguments) == 0
        rows = table.read_text(encoding="utf-8")
    paths = [json.loads(line)["path"] for line in rows.splitlines()]
    assert len(paths) == 23
    assert all(map(os.path.exists, paths))
    start = stdout.tell()
    assert run_command("predict", valid, f"--weights={run}", skip) == 0
    stdout.seek(start)
    lines = stdout.buffer.read().decode("ascii").splitlines()
    assert len(lines) > 23
    assert all(map(str.isprintable, lines))
