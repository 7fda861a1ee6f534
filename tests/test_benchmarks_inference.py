"""Implementations of the benchmark `inference` that compute the same function."""

import importlib.util
import sys
from pathlib import Path

import pytest

from resflax.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[1]))  # `benchmarks` is not installed
from benchmarks import cli, compare, weights
from benchmarks.peers import IMPLEMENTATIONS, onnx_runtimes, resflax_net, resflax_predictor
from benchmarks.task import parse_task

TASK = parse_task("cifar_resnet8@8:2")


def logits(model):
    model.load(weights.make_weights(TASK))
    return {"logits": model.to_numpy(model.forward()).ravel().tolist()}


def test_predictor_equals_the_model():
    outputs = {"model": logits(resflax_net.make(TASK))}
    for backend in ("auto", "jax"):
        outputs[backend] = logits(resflax_predictor.make(TASK, backend))
    compare.check_equal(outputs, 1e-5)


@pytest.mark.parametrize(
    "runtime", [name for name in onnx_runtimes.RUNTIMES if importlib.util.find_spec(name)]
)
def test_onnx_runtime_equals_the_predictor(runtime):
    pytest.importorskip("onnx")
    peer = onnx_runtimes.make(TASK, runtime)
    outputs = {"resflax": logits(resflax_predictor.make(TASK)), runtime: logits(peer)}
    compare.check_equal(outputs, 1e-5)
    with pytest.raises(UserError, match="cannot train"):
        peer.step()


def test_inference_has_peers_that_cannot_train(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    peers = "onnxruntime,openvino,resflax:jax"
    names = cli.select_implementations("inference", peers)
    assert names == ["resflax", *peers.split(",")]
    for peer in peers.split(","):
        with pytest.raises(UserError, match=f"unknown peer '{peer}'"):
            cli.select_implementations("step", peer)


def test_resflax_predicts_with_its_inference_form():
    row = IMPLEMENTATIONS["resflax"]
    assert row.module_for("inference") == "resflax_predictor"
    assert row.module_for("step") == row.module


@pytest.mark.parametrize("dtype", ["int8", "float32,int8", "float32,"])
def test_each_dtype_is_checked(dtype, capsys):
    assert cli.run(["inference", f"--dtype={dtype}"]) == 2
    assert "unknown dtype" in capsys.readouterr().err
