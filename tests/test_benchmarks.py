"""The benchmarks: what they count, that they compare one function, and what they say.

No time is asserted anywhere; `benchmarks/` is not installed, so the repository's root is needed.
"""

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

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks import cli, compare, layers, report, task, weights  # noqa: E402
from benchmarks.peers import CONTENDERS, flax_net, resflax_net  # noqa: E402
from benchmarks.peers.jax_run import nested  # noqa: E402
from benchmarks.process import Workers, environment  # noqa: E402

needs_torch = pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs PyTorch")
# Every kind of block, shortcut and stem, on images of a few pixels.
KINDS = ("cifar_resnet8@8:2", "resnet18@16:2", "resnet50@65:2", "resnet50_v1@16:2")


def run(*args):
    """The front in a process of its own, as its users call it."""
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}  # one device, as elsewhere
    command = [sys.executable, "-m", "benchmarks", *args]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


# --- what is counted


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
        # the same less the two projections, 2 * 131072
        ("cifar_resnet20", "A", "4.06e+07"),
    ],
)
def test_the_flops_are_those_that_were_published(name, shortcut, published):
    wanted = task.parse(name)
    rows = layers.layers({**wanted.spec, "shortcut": shortcut}, wanted.size)
    assert f"{layers.forward_flops(rows) / 2:.2e}" == published


@pytest.mark.parametrize("name", ["resnet18@896:1", "resnet50@896:1", "cifar_resnet20@256:1"])
def test_the_flops_are_those_that_xla_counts(name):
    """XLA leaves padding out and element-wise work in: both are small on large images."""
    wanted = task.parse(name)
    model = flax_net.make_model(wanted)
    x = jax.ShapeDtypeStruct((1, wanted.size, wanted.size, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    lowered = jax.jit(lambda v, x: model.apply(v, x, train=False)).lower(variables, x)
    counted = layers.forward_flops(layers.layers(wanted.spec, wanted.size))
    assert counted == pytest.approx(lowered.cost_analysis()["flops"], rel=0.02)


def test_a_step_costs_three_passes_less_the_images_gradient():
    rows = [layers.Layer("a", 3, 2, 4, 5, ""), layers.Layer("b", 1, 4, 3, 1, "")]
    assert layers.forward_flops(rows) == 2 * (9 * 2 * 4 * 25) + 2 * 12
    assert layers.train_flops(rows) == 2 * 2 * (9 * 2 * 4 * 25) + 3 * 2 * 12


@pytest.mark.parametrize("name", KINDS)
def test_the_names_and_shapes_are_resflaxs_own(name):
    wanted = task.parse(name)
    model = create_model(wanted.model, **wanted.overrides)
    x = jax.ShapeDtypeStruct((1, wanted.size, wanted.size, 3), jnp.float32)
    own = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    made = nested(weights.make_weights(wanted))
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, dict(own))


# --- one function


def answers(run, arrays, steps=3):
    run.load(arrays)
    found = {"logits": run.host(run.forward()).ravel().tolist()}
    losses = [float(run.host(run.step())) for _ in range(steps)]
    return found | ({"losses": losses} if steps else {})


# Far from the defaults, so that a decay or a momentum that is wrong shows in a few losses.
STEEP = {"learning_rate": 0.05, "weight_decay": 0.3}


def test_the_flax_peer_is_resflax_and_one_changed_weight_shows():
    wanted = task.parse(KINDS[0], **STEEP)
    arrays = weights.make_weights(wanted)
    peer = flax_net.make(wanted)
    both = {"resflax": answers(resflax_net.make(wanted), arrays), "flax": answers(peer, arrays)}
    compare.check_equal(both, 1e-4)
    changed = arrays["params/stage2_block1/conv2/kernel"].copy()
    changed[1, 1, 0, 0] += 0.1
    both["flax"] = answers(peer, arrays | {"params/stage2_block1/conv2/kernel": changed})
    with pytest.raises(UserError, match="flax does not compute what resflax does: the logits"):
        compare.check_equal(both, 1e-4)


@needs_torch
@pytest.mark.parametrize("name", KINDS)
def test_the_torch_peer_is_the_flax_peer(name):
    from benchmarks.peers import torch_net

    # The nets of many blocks are compared by their logits: their steps compile slowly.
    steps = 3 if name == KINDS[0] else 0
    wanted = task.parse(name, device="cpu", **STEEP)
    arrays = weights.make_weights(wanted)
    both = {
        "flax": answers(flax_net.make(wanted), arrays, steps),
        "torch": answers(torch_net.make(wanted), arrays, steps),
    }
    compare.check_equal(both, 1e-4)


@pytest.mark.parametrize(
    ("other", "equal"),
    [([1.0, 2.0], True), ([1.0, 2.0001], True), ([1.0, 2.001], False), ([1.0, np.nan], False),
     ([1.0], False), ([np.inf, 2.0], False)],
)  # fmt: skip
def test_answers_are_compared_by_their_largest_difference(other, equal):
    both = {"a": {"losses": [1.0, 2.0]}, "b": {"losses": other}}
    if equal:
        assert set(compare.check_equal(both, 1e-4)) == {"a", "b"}
    else:
        with pytest.raises(UserError, match="b does not compute what a does"):
            compare.check_equal(both, 1e-4)


# --- what the front takes and says


def test_a_task_is_a_name_a_size_and_a_batch():
    for text, name in [
        ("resnet50", "resnet50@224:16"),
        ("resnet18@32", "resnet18@32:64"),
        ("resnet18@32:7", "resnet18@32:7"),
        ("cifar_resnet20", "cifar_resnet20@32:128"),
        ("cifar_resnet1202", "cifar_resnet1202@32:8"),
    ]:
        assert task.parse(text).name == name
    small = task.parse("resnet18@32")
    assert (small.spec["stem"], small.spec["num_classes"]) == ("cifar", 10)
    assert task.parse("resnet18:3", batch=5).batch == 3
    assert task.parse("resnet18", batch=5).batch == 5


def test_a_road_is_a_variable_of_its_own_process(monkeypatch):
    monkeypatch.setenv("RESFLAX_CONV", "xla")
    assert "RESFLAX_CONV" not in environment("resflax", "auto", fresh=False)
    assert environment("resflax:cpu", "auto", fresh=False)["RESFLAX_CONV"] == "cpu"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["dance"], "unknown command 'dance'"),
        (["step", "--models=resnet51"], "unknown model 'resnet51'"),
        (["step", "--models=resnetv2_50"], "the peers have no 'resnetv2_50'"),
        (["step", "--models=resnet18@huge"], "the size of 'resnet18@huge' is 'huge'"),
        (["step", "--models=resnet18@32:0"], "the batch of 'resnet18@32:0' is '0'"),
        (["step", "--peers=keras"], "unknown peer 'keras'"),
        (["step", "--dtype=int8"], "unknown dtype 'int8'"),
        (["step", "--device=tpu"], "unknown device 'tpu'"),
        (["step", "--rounds=0"], "--rounds is 0"),
        (["step", "--batch=x"], "invalid int value: 'x'"),
        (["step", "--seconds=nan"], "--seconds is nan"),
        (["step", "--json=/no/such/folder/x.json"], "there is no folder '/no/such/folder'"),
        (["step", "--model=resnet18"], "unrecognized arguments"),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(args, message, capsys, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", None)  # no worker is started
    assert cli.run(args) == 2
    out, err = capsys.readouterr()
    assert not out
    assert message in err
    assert err.count("\n") == 1
    assert err.startswith("error: ")


def test_a_peer_that_is_not_installed_is_one_line(capsys, monkeypatch):
    row = CONTENDERS["torch"]._replace(needs="no_such_package")
    monkeypatch.setitem(CONTENDERS, "torch", row)
    assert cli.run(["step", "--peers=torch"]) == 2
    assert "pip install no_such_package" in capsys.readouterr().err


def test_layers_prints_and_stops(capsys):
    assert cli.run(["step", "--models=resnet50", "--layers"]) == 0
    out = capsys.readouterr().out
    assert "stage4_block3/conv3" in out
    assert "4.089 GMAC" in out


def test_a_table_lines_up():
    assert report.table(["a", "bc"], [["long", "1"], ["x", "234"]]).splitlines() == [
        "| a    |  bc |",
        "| ---- | --: |",
        "| long |   1 |",
        "| x    | 234 |",
    ]


# --- end to end


def test_a_round_ends_in_a_table_and_a_file(tmp_path):
    path = tmp_path / "step.json"
    size = ["--models=cifar_resnet8@8:2", "--peers=flax", "--rounds=2", "--seconds=0.01"]
    done = run("step", *size, f"--json={path}")
    assert done.returncode == 0, done.stderr
    assert "compiling and checking flax" in done.stderr
    assert "| vs flax |" in done.stdout
    everything = json.loads(path.read_text())
    assert everything["machine"]["versions"]["jax"] == jax.__version__
    (result,) = everything["results"]
    assert result["task"]["model"] == "cifar_resnet8"
    assert result["gemm"]["flops_per_second"] > 0
    assert list(result["contenders"]) == ["resflax", "flax"]
    for found in result["contenders"].values():
        assert len(found["timings"]) == 2
        each = [t["seconds"] / t["calls"] for t in found["timings"]]
        assert found["seconds"]["median"] == pytest.approx(np.median(each))
        assert found["images_per_second"] == pytest.approx(2 / np.median(each))
        work = result["flops_per_image"] * found["images_per_second"]
        assert found["utilisation"] == pytest.approx(work / result["gemm"]["flops_per_second"])
        assert max(found["differences"].values()) <= 1e-4


def test_a_worker_that_fails_is_one_line():
    with Workers() as opened:
        worker = opened.add("gemm", task.parse("cifar_resnet8", device="cpu"), "step")
        with pytest.raises(UserError, match="gemm failed at 'dance': AttributeError: .*dance"):
            worker.ask("dance")
