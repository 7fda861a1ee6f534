"""Tests of `step`, `inference`, `compile` and `memory` of the benchmarks. No times are asserted."""

import doctest
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resflax import create_model
from resflax.errors import UserError

ROOT = Path(__file__).parents[1]  # `benchmarks` is not installed
sys.path.insert(0, str(ROOT))
from benchmarks import cli, compare, layers, report, weights  # noqa: E402
from benchmarks.peers import IMPLEMENTATIONS, flax_net, resflax_net  # noqa: E402
from benchmarks.peers.jax_model import unflatten  # noqa: E402
from benchmarks.process import Workers, worker_env  # noqa: E402
from benchmarks.task import parse_task  # noqa: E402

needs_torch = pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs PyTorch")
# Every block, shortcut and stem, on small images.
MODELS = (
    "cifar_resnet8@8:2",
    "resnet18@16:2",
    "resnet50@65:2",
    "resnet50_v1@16:2",
    "resnet1d50@65:2",
    "r3d_18@17:2",
)


def run(*args, module="benchmarks"):
    """Runs `python -m MODULE` in a new process with one device."""
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [sys.executable, "-m", module, *args]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


# --- layers and operations


@pytest.mark.parametrize(
    ("name", "shortcut", "published"),
    [
        # torchvision's table of weights, 1e9 multiplications
        ("resnet18", "B", "1.81e+09"),
        ("resnet34", "B", "3.66e+09"),
        ("resnet50", "B", "4.09e+09"),
        ("resnet101", "B", "7.80e+09"),
        # github.com/chenyaofo/pytorch-cifar-models: option B
        ("cifar_resnet20", "B", "4.08e+07"),
        ("cifar_resnet56", "B", "1.26e+08"),
        # the same without the two projections, 2 * 131072
        ("cifar_resnet20", "A", "4.06e+07"),
    ],
)
def test_forward_flops_equal_published_values(name, shortcut, published):
    task = parse_task(name)
    network = layers.layers({**task.spec, "shortcut": shortcut}, task.sides)
    assert f"{layers.forward_flops(network) / 2:.2e}" == published


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18@896:1", "resnet50@896:1", "cifar_resnet20@256:1"])
def test_forward_flops_agree_with_xla(name):
    # XLA counts element-wise operations but not padding; both are small on large images.
    task = parse_task(name)
    model = flax_net.make_model(task)
    x = jax.ShapeDtypeStruct((1, task.size, task.size, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    lowered = jax.jit(lambda v, x: model.apply(v, x, train=False)).lower(variables, x)
    counted = layers.forward_flops(layers.layers(task.spec, task.sides))
    assert counted == pytest.approx(lowered.cost_analysis()["flops"], rel=0.02)


def test_train_flops_are_three_passes_without_the_image_gradient():
    network = [
        layers.ConvLayer("a", (3, 3), 2, 4, (5, 5), ""),
        layers.ConvLayer("b", (1, 1), 4, 3, (1, 1), ""),
    ]
    assert layers.forward_flops(network) == 2 * (9 * 2 * 4 * 25) + 2 * 12
    assert layers.train_flops(network) == 2 * 2 * (9 * 2 * 4 * 25) + 3 * 2 * 12


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_weights_have_the_names_and_shapes_of_the_model(name):
    task = parse_task(name, any_dimensions=True)
    model = create_model(task.model, **task.overrides)
    x = jax.ShapeDtypeStruct((1, *task.sides, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    made = unflatten(weights.make_weights(task))
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, dict(variables))


# --- equality of the implementations


@pytest.mark.parametrize("module", ["flax_net", pytest.param("torch_net", marks=needs_torch)])
def test_peer_docstring_examples_are_correct(module):
    results = doctest.testmod(importlib.import_module(f"benchmarks.peers.{module}"))
    assert results.attempted == 1
    assert not results.failed


def outputs_of(model, arrays, steps=3):
    model.load(arrays)
    outputs = {"logits": model.to_numpy(model.forward()).ravel().tolist()}
    losses = [float(model.to_numpy(model.step())) for _ in range(steps)]
    return outputs | ({"losses": losses} if steps else {})


# Large values, so that a wrong weight decay or momentum changes the first losses.
LARGE_UPDATES = {"learning_rate": 0.05, "weight_decay": 0.3}


@pytest.mark.slow
def test_flax_peer_equals_resflax_unless_a_weight_differs():
    task = parse_task(MODELS[0], **LARGE_UPDATES)
    arrays = weights.make_weights(task)
    peer = flax_net.make(task)
    outputs = {
        "resflax": outputs_of(resflax_net.make(task), arrays),
        "flax": outputs_of(peer, arrays),
    }
    compare.check_equal(outputs, 1e-4)
    changed = arrays["params/stage2_block1/conv2/kernel"].copy()
    changed[1, 1, 0, 0] += 0.1
    outputs["flax"] = outputs_of(peer, arrays | {"params/stage2_block1/conv2/kernel": changed})
    with pytest.raises(
        UserError, match="flax and resflax compute different functions: their logits"
    ):
        compare.check_equal(outputs, 1e-4)


@pytest.mark.slow
@needs_torch
@pytest.mark.parametrize("name", [pytest.param(MODELS[0], marks=pytest.mark.slow), *MODELS[1:]])
def test_torch_peer_equals_flax_peer(name):
    from benchmarks.peers import torch_net

    # Only the logits of the deeper networks are compared, because their steps compile slowly.
    steps = 3 if name == MODELS[0] else 0
    task = parse_task(name, any_dimensions=True, device="cpu", **LARGE_UPDATES)
    arrays = weights.make_weights(task)
    outputs = {
        "flax": outputs_of(flax_net.make(task), arrays, steps),
        "torch": outputs_of(torch_net.make(task), arrays, steps),
    }
    compare.check_equal(outputs, 1e-4)


@pytest.mark.parametrize(
    ("other", "equal"),
    [([1.0, 2.0], True), ([1.0, 2.0001], True), ([1.0, 2.001], False), ([1.0, np.nan], False),
     ([1.0], False), ([np.inf, 2.0], False)],
)  # fmt: skip
def test_outputs_are_compared_by_their_largest_difference(other, equal):
    outputs = {"a": {"losses": [1.0, 2.0]}, "b": {"losses": other}}
    if equal:
        assert set(compare.check_equal(outputs, 1e-4)) == {"a", "b"}
    else:
        with pytest.raises(UserError, match="b and a compute different functions"):
            compare.check_equal(outputs, 1e-4)


# --- command line


def test_task_parses_name_size_and_batch():
    for text, name in [
        ("resnet50", "resnet50@224:16"),
        ("resnet18@32", "resnet18@32:64"),
        ("resnet18@32:7", "resnet18@32:7"),
        ("cifar_resnet20", "cifar_resnet20@32:128"),
        ("cifar_resnet1202", "cifar_resnet1202@32:8"),
    ]:
        assert parse_task(text).name == name
    small = parse_task("resnet18@32")
    assert (small.spec["stem"], small.spec["num_classes"]) == ("cifar", 10)
    assert parse_task("resnet18:3", batch=5).batch == 3
    assert parse_task("resnet18", batch=5).batch == 5


def test_worker_env_sets_the_backend_of_its_implementation(monkeypatch):
    monkeypatch.setenv("RESFLAX_CONV", "xla")
    assert "RESFLAX_CONV" not in worker_env("resflax", "auto", no_caches=False)
    assert worker_env("resflax:cpu", "auto", no_caches=False)["RESFLAX_CONV"] == "cpu"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["dance"], "unknown command 'dance'"),
        (["step", "--models=resnet51"], "unknown model 'resnet51'"),
        (["step", "--models=resnetv2_50"], "the peers do not implement 'resnetv2_50'"),
        (["step", "--models=resnet18@huge"], "image size in 'resnet18@huge' is 'huge'"),
        (["step", "--models=resnet18@32:0"], "batch size in 'resnet18@32:0' is '0'"),
        (["step", "--peers=keras"], "unknown peer 'keras'"),
        (["step", "--dtype=int8"], "unknown dtype 'int8'"),
        (["step", "--device=tpu"], "unknown device 'tpu'"),
        (["step", "--rounds=0"], "--rounds is 0"),
        (["step", "--batch=x"], "invalid int value: 'x'"),
        (["step", "--seconds=nan"], "--seconds is nan"),
        (["step", "--json=/no/such/folder/x.json"], "directory '/no/such/folder' does not exist"),
        (["step", "--model=resnet18"], "unrecognized arguments"),
    ],
)
def test_invalid_argument_is_one_line_before_any_worker_starts(args, message, capsys, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", None)  # starting a worker would fail
    assert cli.run(args) == 2
    out, err = capsys.readouterr()
    assert not out
    assert message in err
    assert err.count("\n") == 1
    assert err.startswith("error: ")


def test_missing_peer_library_is_one_line(capsys, monkeypatch):
    row = IMPLEMENTATIONS["torch"]._replace(requires="no_such_package")
    monkeypatch.setitem(IMPLEMENTATIONS, "torch", row)
    assert cli.run(["step", "--peers=torch"]) == 2
    assert "pip install no_such_package" in capsys.readouterr().err


def test_layers_option_prints_the_layers_only(capsys):
    assert cli.run(["step", "--models=resnet50", "--layers"]) == 0
    out = capsys.readouterr().out
    assert "stage4_block3/conv3" in out
    assert "4.089 GMAC" in out


def test_table_columns_are_aligned():
    assert report.table(["a", "bc"], [["long", "1"], ["x", "234"]]).splitlines() == [
        "| a    |  bc |",
        "| ---- | --: |",
        "| long |   1 |",
        "| x    | 234 |",
    ]


# --- end to end


@pytest.mark.slow
@pytest.mark.multiprocess
def test_step_writes_a_table_and_a_json_file(tmp_path):
    path = tmp_path / "step.json"
    size = ["--models=cifar_resnet8@8:2", "--peers=flax", "--rounds=2", "--seconds=0.01"]
    done = run("step", *size, f"--json={path}")
    assert done.returncode == 0, done.stderr
    assert "compiling and checking flax" in done.stderr
    assert "compiling" not in done.stdout
    assert "| vs flax |" in done.stdout
    output = json.loads(path.read_text())
    assert output["baseline"] == "flax"
    assert output["machine"]["versions"]["jax"] == jax.__version__
    (result,) = output["results"]
    assert result["task"]["model"] == "cifar_resnet8"
    assert result["gemm"]["flops_per_second"] > 0
    assert list(result["implementations"]) == ["resflax", "flax"]
    for values in result["implementations"].values():
        assert len(values["timings"]) == 2
        seconds = [t["seconds"] / t["calls"] for t in values["timings"]]
        assert values["seconds"]["median"] == pytest.approx(np.median(seconds))
        assert values["images_per_second"] == pytest.approx(2 / np.median(seconds))
        rate = result["flops_per_image"] * values["images_per_second"]
        assert values["utilization"] == pytest.approx(rate / result["gemm"]["flops_per_second"])
        assert max(values["differences"].values()) <= 1e-4


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("command", "column"), [("compile", "compile_seconds"), ("memory", "temporary_bytes")]
)
def test_fresh_process_benchmark_writes_medians(tmp_path, command, column):
    path = tmp_path / "result.json"
    args = ["--models=cifar_resnet8@8:2", "--peers=", "--rounds=1", f"--json={path}"]
    done = run(command, *args)
    assert done.returncode == 0, done.stderr
    values = json.loads(path.read_text())["results"][0]["implementations"]["resflax"]
    assert values[column] == values["runs"][0][column] > 0


@pytest.mark.slow
def test_failed_worker_command_is_one_line():
    with Workers() as workers:
        worker = workers.start("gemm", parse_task("cifar_resnet8", device="cpu"), "step")
        with pytest.raises(
            UserError, match="gemm: command 'no_such' failed: AttributeError: .*no_such"
        ):
            worker.call("no_such")


@pytest.mark.slow
@pytest.mark.multiprocess
def test_device_to_host_times_engines_of_two_processes(tmp_path):
    path = tmp_path / "result.json"
    args = ["--devices=2", "--processes=2", "--engines=pmap,shard_map"]
    args += ["--model=cifar_resnet8", "--size=8", "--batch=4", "--rounds=1", f"--json={path}"]
    done = run(*args, module="benchmarks.device_to_host")
    assert done.returncode == 0, done.stderr
    results = json.loads(path.read_text())["results"]
    assert list(results) == ["pmap", "shard_map"]
    for seconds in results.values():
        assert len(seconds) == 4
        assert min(seconds.values()) > 0
    assert "on 2 virtual CPU devices of 2 processes" in done.stdout
