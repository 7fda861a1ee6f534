"""Tests of `decode`, `loader` and `input` of the benchmarks. No times are asserted."""

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
from benchmarks import cli, input_benchmarks, jpegs, report_input  # noqa: E402
from benchmarks.peers import decoders  # noqa: E402


def test_psnr_equals_its_definition():
    black, gray = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 51, np.uint8)
    assert decoders.psnr(black, gray) == pytest.approx(20 * math.log10(5))
    assert decoders.psnr(gray, gray) == math.inf


def test_jpeg_depends_only_on_seed_and_index():
    assert jpegs.jpeg(0, 1) == jpegs.jpeg(0, 1) != jpegs.jpeg(0, 2)
    with Image.open(io.BytesIO(jpegs.jpeg(0, 1))) as image:
        assert image.format == "JPEG"
        assert image.size in [(width, height) for width, height, _ in jpegs.SIZES]


def test_decoders_return_crops_of_the_requested_size():
    data = jpegs.jpeg(0, 3)
    for name in decoders.installed_decoders():
        for output in ("train", "eval"):
            assert decoders.decode_output(name, output, data, 3, 32).shape == (32, 32, 3)


def test_overhead_is_the_quartiles_of_the_ratios_per_round():
    def timings(*seconds):
        return [{"calls": 2, "seconds": value} for value in seconds]

    slowdowns = input_benchmarks.overhead(timings(2.0, 2.2, 3.0), timings(2.0, 2.0, 2.0))
    assert slowdowns == pytest.approx([0.05, 0.1, 0.3])


def test_summary_counts_images_per_second_and_per_core():
    timings = [
        {"calls": 4, "seconds": 2.0, "cpu_seconds": 4.0, "blocked_seconds": 0.5},
        {"calls": 4, "seconds": 2.0, "cpu_seconds": 4.0, "blocked_seconds": 0.5},
    ]
    summary = input_benchmarks.summarize(timings, 16)
    assert summary["images_per_second"] == pytest.approx(32)
    assert summary["images_per_core_second"] == pytest.approx(16)
    assert summary["blocked_share"] == pytest.approx(0.25)


def test_loader_table_compares_equal_numbers_of_workers():
    rates = {"decoding only": 400, "resflax, 1": 200, "resflax, 2": 380, "torch, 2": 190}
    cases = {
        name: {"images_per_second": rate, "images_per_core_second": rate / 2}
        for name, rate in rates.items()
    }
    files = {"count": 8, "bytes": 110_000.0, "pixels": 180_000.0}
    row = next(
        line
        for line in report_input.loader_table({"files": files, "cases": cases}).splitlines()
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
def test_invalid_argument_is_one_line_before_any_worker_starts(args, message, capsys, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", None)  # starting a worker would fail
    assert cli.run(args) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("args", "cases"),
    [
        (["decode", "--peers=pillow:draft"], ["resflax/whole", "pillow:draft/train"]),
        (["loader", "--peers=", "--models=resnet50@32:4"], ["decoding only", "resflax, 2"]),
        (
            ["input", "--models=cifar_resnet8@8:4"],
            ["fixed batch", "dataset on device", "batches from host"],
        ),
        (
            ["input", "--models=cifar_resnet8@8:4,resnet18@64:2"],
            ["fixed batch", "batches from host"],
        ),
    ],
)
def test_input_command_writes_a_table_and_a_json_file(tmp_path, args, cases):
    path = tmp_path / "result.json"
    small = ["--rounds=2", "--seconds=0.01", "--images=8", f"--json={path}"]
    env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}  # one device
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *args, *small],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads(path.read_text())["results"][0]["cases"]
    for case in cases:
        assert len(results[case]["timings"]) == 2
        assert results[case]["images_per_second"] > 0
    assert done.stdout.count("\n| ") > len(cases)
