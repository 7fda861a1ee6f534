"""Tests of `python -m benchmarks.evaluate`. No times are asserted."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks import cli, evaluate, jpegs  # noqa: E402


def timing(nll, speed=10.0):
    return {
        "accuracy": 0.5,
        "nll": nll,
        "examples": 96,
        "examples_per_second": speed,
        "command_seconds": 20.0,
    }


def test_report_compares_median_speeds_with_timm():
    results = {
        evaluate.RESFLAX: [timing(2.0, speed) for speed in (12.0, 15.0, 90.0)],
        evaluate.TIMM: [timing(2.0, speed) for speed in (1.0, 10.0, 11.0)],
    }
    row = next(line for line in evaluate.report(results).splitlines() if "| resflax" in line)
    assert "1.50" in row


def test_different_networks_are_an_error():
    results = {evaluate.RESFLAX: [timing(2.0)], evaluate.TIMM: [timing(2.1)]}
    with pytest.raises(cli.UserError, match="timm: loss 2.1 of 96 examples, resflax 2.0"):
        evaluate.check_equal(results)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--rounds=0"], "--rounds is 0"), (["--images=64"], "expected more than two batches")],
)
def test_invalid_arguments_are_errors(arguments, message, capsys):
    assert cli.run(arguments, evaluate.main) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_timm_and_resflax_evaluate_the_same_network(tmp_path):
    pytest.importorskip("timm")
    jpegs.write_dataset(tmp_path / "images", 12)
    evaluate.save_model("test_resnet", tmp_path / "model")
    args = argparse.Namespace(batch=4, workers=0)
    results = {
        name: [
            evaluate.time_command(
                evaluate.command(
                    name, tmp_path / "model", tmp_path / "images/train", tmp_path / "out", args
                ),
                tmp_path / "out",
            )
        ]
        for name in (evaluate.RESFLAX, evaluate.TIMM)
    }
    evaluate.check_equal(results)
    assert results[evaluate.TIMM][0]["examples"] == 12


@pytest.mark.slow
def test_timm_peer_prints_one_json_object(tmp_path):
    pytest.importorskip("timm")
    jpegs.write_dataset(tmp_path / "images", 12)
    evaluate.save_model("test_resnet", tmp_path / "model")
    command = [sys.executable, "-m", "benchmarks.peers.timm_validate", str(tmp_path / "model")]
    command += [str(tmp_path / "images/train"), "4", "0", "channels_last"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["examples"] == 12
