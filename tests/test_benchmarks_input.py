"""`decode`, `loader` and `input`: what they count and say, not how fast it is."""

import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks import cli, jpegs, report_input, stretches  # noqa: E402
from benchmarks.peers import decoders  # noqa: E402


def test_psnr_is_that_of_its_definition():
    black, grey = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 51, np.uint8)
    assert decoders.psnr(black, grey) == pytest.approx(20 * math.log10(5))
    assert decoders.psnr(grey, grey) == math.inf


def test_a_jpeg_is_a_function_of_its_seed_and_number():
    assert jpegs.jpeg(0, 1) == jpegs.jpeg(0, 1) != jpegs.jpeg(0, 2)
    with Image.open(io.BytesIO(jpegs.jpeg(0, 1))) as image:
        assert image.format == "JPEG"
        assert image.size in [(width, height) for width, height, _ in jpegs.SIZES]


def test_every_decoder_gives_crops_of_one_shape():
    data = jpegs.jpeg(0, 3)
    for name in decoders.installed():
        for what in ("train", "eval"):
            assert decoders.decoded(name, what, data, 3, 32).shape == (32, 32, 3)


def test_a_cost_is_the_median_of_the_rounds_ratios():
    def rows(*seconds):
        return [{"calls": 2, "seconds": value} for value in seconds]

    assert stretches.cost(rows(2.0, 2.2, 3.0), rows(2.0, 2.0, 2.0)) == pytest.approx(
        [0.05, 0.1, 0.3]
    )


def test_a_result_counts_images_per_second_and_per_core():
    timings = [
        {"calls": 4, "seconds": 2.0, "cpu_seconds": 4.0, "blocked_seconds": 0.5},
        {"calls": 4, "seconds": 2.0, "cpu_seconds": 4.0, "blocked_seconds": 0.5},
    ]
    found = stretches.result_of(timings, 16)
    assert found["images_per_second"] == pytest.approx(32)
    assert found["images_per_core_second"] == pytest.approx(16)
    assert found["blocked_share"] == pytest.approx(0.25)


def test_the_loaders_table_compares_equal_numbers_of_workers():
    rates = {"decoding alone": 400, "resflax, 1": 200, "resflax, 2": 380, "torch, 2": 190}
    found = {
        name: {"images_per_second": rate, "images_per_core_second": rate / 2}
        for name, rate in rates.items()
    }
    files = {"count": 8, "bytes": 110_000.0, "pixels": 180_000.0}
    row = next(
        line
        for line in report_input.loader({"files": files, "contenders": found}).splitlines()
        if "resflax, 2 workers" in line
    )
    assert [cell.strip() for cell in row.strip("|").split("|")][2:4] == ["2.00x", "1.90x"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["decode", "--images=0"], "--images is 0"),
        (["decode", "--peers=gifs"], "unknown peer 'gifs'"),
        (["loader", "--peers=flax"], "unknown peer 'flax'"),
        (["input", "--peers=torch"], "unknown peer 'torch'"),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(args, message, capsys, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", None)  # no worker is started
    assert cli.run(args) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["decode", "--peers=pillow:draft"], ["resflax/whole", "pillow:draft/train"]),
        (["loader", "--peers=", "--models=resnet50@32:4"], ["decoding alone", "resflax, 2"]),
        (["input", "--models=cifar_resnet8@8:4"], ["fixed batch", "device road", "host road"]),
        (["input", "--models=cifar_resnet8@8:4,resnet18@64:2"], ["fixed batch", "host road"]),
    ],
)
def test_each_ends_in_a_table_and_a_file(tmp_path, args, parts):
    path = tmp_path / "found.json"
    small = ["--rounds=2", "--seconds=0.01", "--images=8", f"--json={path}"]
    env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}  # one device
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *args, *small],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())["results"][0]
    for part in parts:
        found = result["contenders"][part]
        assert len(found["timings"]) == 2
        assert found["images_per_second"] > 0
    assert done.stdout.count("\n| ") > len(parts)
