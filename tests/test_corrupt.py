"""Training runs on data with unusable examples, which are reported exactly."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import run_train
from helpers.image_folders import encode_png, prepare_stripes, write_folder
from PIL import Image

from resflax import UserError
from resflax.data import load_dataset

SMALL_MODEL = ["--config.model=cifar_resnet8", "--config.epochs=1", "--config.batch_size=400"]
SMALL_MODEL += [
    "--config.spec.depths=(1,)",
    "--config.spec.widths=(4,)",
    "--config.spec.stem_width=4",
]
ROOT = Path(__file__).parents[1]
SKIP = "--config.data.on_bad_example=skip"


def jpeg():
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "jpeg")
    return out.getvalue()


GOOD = encode_png(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
FLIPPED = bytes([*GOOD[:60], GOOD[60] ^ 1, *GOOD[61:]])  # fails its PNG checksum
# Suffix and content of each kind of unusable file.
BAD = [
    (".png", GOOD[:-40]),
    (".jpg", jpeg()[:-40]),
    (".png", FLIPPED),
    (".jpg", b"\xff\xd8 not an image at all"),
    (".png", b""),
    (".png", encode_png(np.zeros((8, 1, 3), np.uint8))),
    (".mp4", b"hello"),
]
# Converted to RGB, as the other images are.
GRAY = [
    (".png", encode_png(np.zeros((8, 8), np.uint8))),
    (".png", encode_png(np.zeros((8, 8), np.uint16))),
]


@pytest.fixture(scope="module")
def corrupt(tmp_path_factory):
    """A folder of 10,000 training and 400 test images, 1% of them unusable or gray.

    Returns the folder, and the names of the unusable files; gray images become RGB.
    """
    root, rng = tmp_path_factory.mktemp("corrupt"), np.random.default_rng(0)
    files, names = {}, set()
    for split, count in (("train", 10_000), ("test", 400)):
        # Not the first of a class: the first readable image sets the expected shape.
        corrupted = rng.choice(np.arange(10, count), count // 100, replace=False).tolist()
        kinds = dict(zip(corrupted, (BAD + GRAY) * (count // 1000 + 1), strict=False))
        for i in range(count):
            suffix, content = kinds.get(i, (".png", GOOD))
            name = f"{split}/{i % 10}/{i:05}{suffix}"
            files[name] = content
            if (suffix, content) in BAD:
                names.add(name)
    write_folder(root, files)
    return root, names


def train(capsys, *arguments):
    """Runs `resflax train` in this process; returns its exit status, stdout and stderr."""
    recipe = f"--config={ROOT}/configs/digits.py"
    return run_train(recipe, *SMALL_MODEL, *arguments), *capsys.readouterr()


@pytest.mark.slow
@pytest.mark.parametrize("split_type", ["in memory", "streaming"])
def test_run_skips_and_reports_unusable_images(split_type, corrupt, tmp_path, capsys):
    root, bad = corrupt
    streaming = ["--config.data.image_size=8"] if split_type == "streaming" else []
    out = tmp_path / "run"
    arguments = [f"--config.dataset=folder:{root}", SKIP, f"--workdir={out}", *streaming]
    status, stdout, _ = train(capsys, *arguments)
    assert status == 0
    skipped = (out / "skipped.txt").read_text().splitlines()
    assert sorted(line.split(": ")[0].removeprefix(f"{root}/") for line in skipped) == sorted(bad)
    results = json.loads((out / "results.json").read_text())
    assert results["skipped_examples"] == len(bad)
    assert results["test_examples"] == 400 - sum(name.startswith("test") for name in bad)
    assert f"{len(bad)} skipped, see skipped.txt" in stdout


def test_run_stops_at_an_unusable_image_before_any_compute(corrupt, tmp_path, capsys):
    root, names = corrupt
    arguments = [f"--config.dataset=folder:{root}", f"--workdir={tmp_path}/run"]
    status, _, err = train(capsys, *arguments)
    assert (status, err.count("\n")) == (2, 1)
    assert re.match(f"error: {root}/(.*?): ", err)[1] in names
    assert not (tmp_path / "run").exists()


def test_labels_out_of_range_are_too_many_to_skip(tmp_path):
    """A prepared dataset whose metadata lack the last class, which examples 2 and 5 have."""
    data_dir = prepare_stripes(tmp_path, counts={"train": 6, "test": 2})
    features = next(tmp_path.rglob("features.json"))
    text = features.read_text()
    assert '"3"' in text
    features.write_text(text.replace('"3"', '"2"'))
    labels = next(tmp_path.rglob("*.labels.txt"))
    labels.write_text("a\nb\n")
    with pytest.raises(
        UserError, match=r"stripes, train\[\d\]: has label 2: expected from 0 to 1.*=skip"
    ):
        load_dataset("stripes", data_dir)
    message = r"2 of 6 examples cannot be used, too many to skip them \(.*\[\d\]: has label 2"
    with pytest.raises(UserError, match=message):
        load_dataset("stripes", data_dir, on_bad_example="skip")


@pytest.mark.parametrize(
    ("path", "message"),
    [("~nobody-of-this-name/images", "there is no user"), ("x" * 5000, "cannot read the folder '")],
)
def test_unreadable_folder_raises_one_line(path, message):
    with pytest.raises(UserError, match=message) as e:
        load_dataset(f"folder:{path}")
    assert "\n" not in str(e.value)
