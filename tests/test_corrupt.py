"""Runs on data of which a part cannot be used: they end, and say exactly which part."""

import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_folder import png, write
from test_sources import prepare

from resflax import UserError
from resflax.cli.flags import report
from resflax.data import load_dataset

sys.path.insert(0, str(Path(__file__).parents[1]))
import train as program

SMALL = ["--config.model=cifar_resnet8", "--config.epochs=1", "--config.batch_size=400"]
SMALL += ["--config.spec.depths=(1,)", "--config.spec.widths=(4,)", "--config.spec.stem_width=4"]
SKIP = "--config.data.on_bad_example=skip"


def jpeg(mode="RGB"):
    out = io.BytesIO()
    Image.new(mode, (8, 8)).save(out, "jpeg")
    return out.getvalue()


GOOD = png(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
FLIPPED = bytes([*GOOD[:60], GOOD[60] ^ 1, *GOOD[61:]])  # its checksum tells
# How each kind of bad file ends, and what it holds.
BAD = [
    (".png", GOOD[:-40]),
    (".jpg", jpeg()[:-40]),
    (".png", FLIPPED),
    (".jpg", b"\xff\xd8 not a picture at all"),
    (".png", b""),
    (".png", png(np.zeros((8, 8), np.uint16))),
    (".png", png(np.zeros((8, 1, 3), np.uint8))),
    (".txt", b"hello"),
]
# What is bad only where images are taken as they are.
OTHERS = [(".png", png(np.zeros((8, 8), np.uint8))), (".jpg", jpeg("CMYK"))]


@pytest.fixture(scope="module")
def corrupt(tmp_path_factory):
    """10,000 images to train on and 400 to test on, a hundredth of each spoilt in all ways.

    Returns the folder, and the names of files by whether all roads refuse them.
    """
    root, rng = tmp_path_factory.mktemp("corrupt"), np.random.default_rng(0)
    files, names = {}, {True: set(), False: set()}
    for split, count in (("train", 10_000), ("test", 400)):
        # Not one class's first: the first good image says what shape all must have.
        spoilt = rng.choice(np.arange(10, count), count // 100, replace=False).tolist()
        kinds = dict(zip(spoilt, (BAD + OTHERS) * (count // 1000 + 1), strict=False))
        for i in range(count):
            suffix, content = kinds.get(i, (".png", GOOD))
            name = f"{split}/{i % 10}/{i:05}{suffix}"
            files[name] = content
            if i in kinds:
                names[(suffix, content) in BAD].add(name)
    write(root, files)
    return root, names


def run(monkeypatch, capsys, *arguments):
    """Exit status, stdout and stderr of `train.py`."""
    monkeypatch.setattr(sys, "argv", ["train.py", *SMALL, *arguments])
    return report(program.main), *capsys.readouterr()


@pytest.mark.parametrize("road", ["in memory", "as needed"])
def test_a_run_ends_and_reports_which_hundredth_was_left_out(
    road, corrupt, tmp_path, monkeypatch, capsys
):
    root, names = corrupt
    more = ["--config.data.image_size=8"] if road == "as needed" else []
    out = tmp_path / "run"
    status, said, _ = run(
        monkeypatch, capsys, f"--config.dataset=folder:{root}", SKIP, f"--workdir={out}", *more
    )
    bad = names[True] if more else names[True] | names[False]
    assert status == 0
    told = (out / "skipped.txt").read_text().splitlines()
    assert sorted(line.split(": ")[0].removeprefix(f"{root}/") for line in told) == sorted(bad)
    results = json.loads((out / "results.json").read_text())
    assert results["skipped_examples"] == len(bad)
    assert results["test_examples"] == 400 - sum(name.startswith("test") for name in bad)
    assert f"{len(bad)} skipped, see skipped.txt" in said


def test_without_leave_to_skip_it_ends_before_any_compute(corrupt, tmp_path, monkeypatch, capsys):
    root, names = corrupt
    status, _, err = run(
        monkeypatch, capsys, f"--config.dataset=folder:{root}", f"--workdir={tmp_path}/run"
    )
    assert (status, err.count("\n")) == (2, 1)
    assert re.match(f"error: {root}/(.*?): ", err)[1] in names[True] | names[False]
    assert not (tmp_path / "run").exists()


def test_a_label_out_of_range_is_named_by_its_index_or_left_out(tmp_path):
    """A prepared set whose list of classes lost its last one; examples 2 and 5 are of it."""
    place = prepare(tmp_path, counts={"train": 6, "test": 2})
    described = next(tmp_path.rglob("features.json"))
    text = described.read_text()
    assert '"3"' in text
    described.write_text(text.replace('"3"', '"2"'))
    labels = next(tmp_path.rglob("*.labels.txt"))
    labels.write_text("a\nb\n")
    with pytest.raises(UserError, match=r"stripes, train\[\d\]: has label 2 of 2 classes.*=skip"):
        load_dataset("stripes", place)
    data = load_dataset("stripes", place, on_bad_example="skip")
    assert sorted(data.train.labels.tolist()) == [0, 0, 1, 1]
    assert len(data.skipped) == 2


@pytest.mark.parametrize("path", ["~nobody-of-this-name/images", "x" * 5000])
def test_a_path_that_cannot_be_looked_into_is_one_line(path):
    with pytest.raises(UserError, match="cannot look into the folder '") as e:
        load_dataset(f"folder:{path}")
    assert "\n" not in str(e.value)
