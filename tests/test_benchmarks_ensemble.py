"""Tests of `python -m benchmarks ensemble`. No times are asserted."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]  # `benchmarks` is not installed
sys.path.insert(0, str(ROOT))
from benchmarks import cli, ensemble, member_convolutions  # noqa: E402
from benchmarks.layers import layers  # noqa: E402
from benchmarks.peers import ensembles  # noqa: E402
from benchmarks.task import parse_task  # noqa: E402

needs_torch = pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs PyTorch")
TASK = parse_task("cifar_resnet8@8:4")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["ensemble", "--members=0"], "--members is '0': expected integers from 1 to 1024"),
        (["ensemble", "--members=1,x"], "--members is '1,x'"),
        (["step", "--members=2"], "--members is for ensemble only, not for step"),
        (["ensemble", "--peers=tourch"], "unknown peer 'tourch'"),
    ],
)
def test_invalid_argument_is_one_line(args, message, capsys):
    assert cli.run(args) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_methods_compute_the_losses_of_separate_steps():
    cases = ensembles.make(TASK)
    expected = cases.losses("separate:3", 2)
    assert len(expected) == 6
    for method in ("auto", "vmap", "map"):
        np.testing.assert_allclose(cases.losses(f"{method}:3", 2), expected, rtol=1e-4)


@pytest.mark.slow
@needs_torch
def test_torch_func_computes_the_losses_of_separate_steps():
    from benchmarks.peers import torch_ensembles

    cases = torch_ensembles.make(TASK)
    expected = ensembles.make(TASK).losses("separate:2", 2)
    for method in ("separate", "vmap"):
        np.testing.assert_allclose(cases.losses(f"{method}:2", 2), expected, rtol=1e-4)


def test_ratios_are_medians_over_rounds():
    def timing(seconds, cpu):
        return {"calls": 2, "seconds": seconds, "cpu_seconds": cpu}

    timings = [timing(1, 3), timing(4, None), timing(9, 3)]
    baseline = [timing(2, 2), timing(2, 2), timing(3, 2)]
    assert ensemble._ratio(timings, baseline, "seconds") == 2
    assert ensemble._ratio(timings, baseline, "cpu_seconds") == 1.5


@pytest.mark.slow
@pytest.mark.multiprocess
def test_ensemble_writes_a_table_and_a_json_file(tmp_path):
    path = tmp_path / "results.json"
    options = ["--members=2", "--peers=processes", "--rounds=1", "--seconds=0.01"]
    command = [sys.executable, "-m", "benchmarks", "ensemble", "--models=cifar_resnet8@8:4"]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [*command, *options, f"--json={path}"],
        cwd=ROOT, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(path.read_text())["results"]
    times = result["members"]["2"]
    assert list(times) == ["one after another", "resflax", "processes"]
    assert times["one after another"]["time_ratio"] == 1
    assert all(f"| {name} |" in done.stdout.replace("  ", "") for name in ("resflax", "processes"))
    assert "Compilation: " in done.stdout


def test_convolutions_of_a_step_are_three_passes_of_each_layer():
    found = member_convolutions.find_convolutions(TASK)
    counts = {name: 0 for name in ("fwd", "dgrad", "wgrad")}
    for convolution, count in found.items():
        counts[convolution.conv_pass] += count
    convolutions = len(layers(TASK.spec, TASK.sides, TASK.channels)) - 1  # without the head
    # The images need no gradient.
    assert counts == {"fwd": convolutions, "dgrad": convolutions - 1, "wgrad": convolutions}


@pytest.mark.slow
def test_member_convolutions_are_equal_and_timed(tmp_path, capsys):
    path = tmp_path / "result.json"
    args = ["--models=cifar_resnet8@8:4", "--members=2", "--rounds=1", f"--json={path}"]
    assert cli.run(args, member_convolutions.main) == 0
    (rows,) = json.loads(path.read_text())["results"].values()
    assert sum(row["count"] for row in rows) == 20
    assert all(min(row["seconds"].values()) > 0 for row in rows)
    assert "XLA, grouped" in capsys.readouterr().out


def test_member_convolutions_refuse_no_members(capsys):
    assert cli.run(["--members=0"], member_convolutions.main) == 2
    assert "--members is 0: expected an integer from 1 to 1024" in capsys.readouterr().err


def test_convolutions_of_a_preactivation_network_are_found():
    found = member_convolutions.find_convolutions(parse_task("wrn16_4@8:4", needs_peers=False))
    passes = [convolution.conv_pass for convolution in found.elements()]
    # 12 in the branches, 3 projections and the stem; the images need no gradient.
    assert [passes.count(name) for name in ("fwd", "dgrad", "wgrad")] == [16, 15, 16]
