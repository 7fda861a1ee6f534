"""The steps of tools/accelerator.sh: limits, failures, missing packages, a dry run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]  # `benchmarks` is not installed
sys.path.insert(0, str(ROOT))
from benchmarks import accelerator, one_process  # noqa: E402
from benchmarks.accelerator import run_parts, summarize  # noqa: E402
from benchmarks.accelerator_steps import (  # noqa: E402
    DRY_RUN,
    GPU,
    MINUTES,
    Part,
    Step,
    make_parts,
)


def python(name, code, limit=30.0, **fields):
    return Step(name, ["-c", code], limit, **fields)


def test_no_step_stops_the_others(tmp_path):
    write = "import json; json.dump({'a': 1, 'b': 2}, open('{}.json', 'w'))"
    steps = [
        python("good", write.replace("{}", "good"), results="good.json", keys=("a",)),
        python("failed", write.replace("{}", "failed") + "; exit(3)", results="failed.json"),
        python("slow", "import time; time.sleep(60)", limit=1.5),
        python("missing", "", requires="no_such_package"),
        python("last", "print('one\\n\\ntwo')"),
    ]
    parts = {"first": Part(60, [steps[:2], [steps[2]], [steps[3]]]), "second": Part(9, [steps[4:]])}
    rows = list(run_parts(parts, tmp_path, 1.0, accelerator.environment("cpu")))
    assert [(part, step.name) for part, step, _ in rows] == [
        *(("first", name) for name in ("good", "failed", "slow", "missing")),
        ("second", "last"),
    ]
    good, failed, slow, missing, last = (result for *_, result in rows)
    assert (good["status"], good["results"]) == ("ok", {"a": 1})
    assert (failed["status"], failed["results"]) == ("exit status 3", {"a": 1, "b": 2})
    assert slow["status"] == "timed out"
    assert missing == {"status": "not run", "reason": "no_such_package is not installed"}
    assert (last["status"], last["output"]) == ("ok", ["one", "two"])


def test_parts_without_time_left_are_not_run(tmp_path):
    sleep = python("sleep", "import time; time.sleep(60)")
    parts = {"first": Part(1, [[sleep], [python("next", "")]])}
    results = [result for *_, result in run_parts(parts, tmp_path, 1.5, {})]
    assert [result["status"] for result in results] == ["timed out", "not run"]
    assert results[1]["reason"] == "no time left"


def step_names(parts):
    return [step.name for part in parts.values() for group in part.groups for step in group]


def test_parts_fit_the_time_of_a_run_on_a_gpu():
    parts = make_parts(GPU, __file__)
    assert list(parts) == ["runs", "resnet50", "ensembles"]
    assert sum(part.seconds for part in parts.values()) <= 60 * MINUTES
    names = step_names(parts)
    assert len(names) == len(set(names))


def test_three_seeds_need_images_except_in_a_dry_run():
    assert {"unpack", "three seeds"} <= {*step_names(make_parts(GPU, __file__))}
    assert "unpack" not in step_names(make_parts(GPU, str(ROOT)))
    assert "three seeds" not in step_names(make_parts(GPU, ""))
    assert "three seeds" in step_names(make_parts(DRY_RUN, ""))


def test_summary_compares_bits_speeds_and_costs():
    def rate(value, **more):
        return {"images_per_second": value, "seconds": {"median": 0.5}, **more}

    step = rate(200.0, flops_per_second=40.0, bytes_accessed=30.0, losses=[2.0, 1.0])
    results = {
        "digits pmap 1": {"params_sha256": "a"},
        "digits pmap 2": {"params_sha256": "a"},
        "digits mesh 1": {"params_sha256": "a"},
        "digits mesh 2": {"params_sha256": "b"},
        "digits deterministic 1": {"params_sha256": "c"},
        "card": {"gemm": {"per_second": 100.0}, "bandwidth": {"per_second": 240.0}},
        "resflax": {"step": step | {"largest_costs": ["conv", "norm", "relu", "pool"]}},
        "flax": {"step": rate(100.0, losses=[2.0, 1.1]), "inference": {"platform": "cpu"}},
        "members, loop": {"separate:4": rate(10.0), "vmap:4": rate(30.0)},
        "members, grouped": {"vmap:4": rate(5.0), "vmap:8": rate(5.0)},
    }
    parts = {"part": {name: {"results": values} for name, values in results.items()}}
    parts["part"]["torch"] = {"status": "timed out"}
    assert summarize(parts) == {
        "same_bits": {"pmap": True, "mesh": False},
        "images_per_second": {"step": {"resflax": 200.0, "flax": 100.0}, "inference": {}},
        "speed_of_members": {"4 by vmap, loop": 3.0, "4 by vmap, grouped": 0.5},
        "share_of_matmul_rate": 0.4,
        "share_of_bandwidth": 0.25,
        "largest_costs": ["conv", "norm", "relu"],
        "loss_difference": {"flax": pytest.approx(0.05)},
    }
    assert summarize({}) == {
        "same_bits": {},
        "images_per_second": {"step": {}, "inference": {}},
        "speed_of_members": {},
    }


@pytest.mark.slow
def test_training_and_inference_of_a_network_are_measured(tmp_path):
    path = tmp_path / "resflax.json"
    options = [f"--model={DRY_RUN.network}", "--device=cpu", "--seconds=0.01", f"--json={path}"]
    assert one_process.run(["network", "resflax", *options], one_process.main) == 0
    results = json.loads(path.read_text())
    for mode in ("step", "inference"):
        assert results[mode]["images_per_second"] > 0
        assert results[mode]["platform"] == "cpu"
    costs = results["step"]["largest_costs"]
    assert len(costs) == one_process.KEPT_COSTS
    assert 0 < sum(cost["share"] for cost in costs) <= 1
    assert any("conv" in cost["name"] for cost in costs)


@pytest.mark.slow
def test_dry_run_writes_json_after_every_step(tmp_path):
    """One part; the others run the same way, and take minutes."""
    options = ["--dry-run", "--parts=ensembles", f"--out={tmp_path}"]
    done = subprocess.run(
        ["bash", str(ROOT / "tools/accelerator.sh"), *options],
        env=accelerator.environment("cpu") | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "accelerator.json").read_text())
    steps = report["parts"]["ensembles"]
    assert {step["status"] for step in steps.values()} == {"ok"}
    assert set(report["summary"]["speed_of_members"]) == {
        f"2 by {method}" for method in ("vmap, loop", "map, loop", "vmap, grouped")
    }
    assert (tmp_path / "accelerator.log").read_text().count("== ensembles: ") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "accelerator.json",
        "accelerator.log",
    ]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--data=no/such.tar", "--data: 'no/such.tar' does not exist"),
        ("--parts=resnet", "unknown part 'resnet': "),
        ("--minute=1", "unrecognized arguments: --minute=1"),
    ],
)
def test_invalid_arguments_are_one_line(argument, message, tmp_path, capsys):
    assert one_process.run([argument, f"--out={tmp_path}"], accelerator.main) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
