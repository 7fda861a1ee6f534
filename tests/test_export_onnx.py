"""ONNX models give the logits of `model.apply`, judged by onnxruntime."""

import json

import jax
import numpy as np
import pytest
from helpers.networks import apply, randomized, variables_of
from helpers.small_specs import EXTRA_SPECS, zoo_specs

from resflax import UserError, create_model
from resflax.export.onnx import OPSETS, to_onnx
from resflax.export.onnx_operators import OPERATORS
from resflax.inference import OPS
from resflax.inference.graph import JAX_ONLY
from resflax.nn import ACTIVATIONS
from resflax.weights.preprocess import Preprocess
from resflax.weights.pretrained_config import PretrainedConfig
from resflax.zoo import get_spec

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

SPECS = {**zoo_specs(), **EXTRA_SPECS}
# Every operation of the inference form.
QUICK = ("blur", "preact_se_A", "v1_frn", "v1_group", "pruned", "resnetv2_50d_evos",
         "resnetv2_50x1_bit", "dilated_D")  # fmt: skip
FULL_SIZE = ("resnet50", "resnetv2_50", "seresnext50_32x4d", "ecaresnet50d_pruned", "resnetrs50",
             "cifar_resnet110", "wrn16_4", "resnetblur50", "resnetaa50d")  # fmt: skip


def network(spec, size=33, channels=3):
    """Returns a config, a model, random variables and two random images."""
    model = create_model(spec, scan=False)
    variables = randomized(variables_of(model, (1, size, size, channels)))
    statistics = {"mean": (0.4,) * channels, "std": (0.2,) * channels}
    config = PretrainedConfig(spec, channels, Preprocess(size=(size, size), **statistics))
    shape = (2, size, size, channels)
    images = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return config, model, variables, images


def run_onnx(model, images):
    """Returns the only output of a serialized model for NHWC images; NCHW for float ones."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    if images.dtype == np.float32:
        images = images.transpose(0, 3, 1, 2)
    return session.run(None, {"image": images})[0]


def relative_error(value, expected):
    """Returns the largest difference over the largest expected value."""
    return np.abs(value - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(
    ("name", "fold"),
    [
        pytest.param(
            name, fold, marks=() if name in QUICK[: None if fold else 2] else [pytest.mark.slow]
        )
        for name in SPECS
        for fold in (True, False)
    ],
)
def test_onnxruntime_gives_the_models_logits(name, fold):
    config, model, variables, images = network(SPECS[name])
    exported = to_onnx(config, variables, fold=fold)
    assert relative_error(run_onnx(exported, images), apply(model, variables, images)) < 1e-5


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_is_that_of_jax(activation):
    """On its own, before a branch, and as the end of convolutions."""
    spec = get_spec("cifar_resnet8").override(
        depths=(1,), widths=(8,), stem_width=8, activation=activation, order="act_only_preact"
    )
    config, model, variables, images = network(spec, size=4)
    value = run_onnx(to_onnx(config, variables), images)
    assert relative_error(value, apply(model, variables, images)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SIZE)
def test_onnxruntime_gives_the_logits_of_full_size_networks(name):
    config, model, variables, images = network(get_spec(name), size=64)
    expected = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    assert relative_error(run_onnx(to_onnx(config, variables), images), expected) < 1e-5


@pytest.mark.parametrize("opset", [OPSETS[0], OPSETS[-1]])
@pytest.mark.parametrize("name", ["resnetv2_50d_evos", "v1_frn", "blur"])
def test_opsets_give_the_same_logits(name, opset):
    config, _, variables, images = network(SPECS[name])
    exported = to_onnx(config, variables, opset=opset)
    assert onnx.load_from_string(exported).opset_import[0].version == opset
    expected = run_onnx(to_onnx(config, variables), images)
    assert relative_error(run_onnx(exported, images), expected) < 1e-6


@pytest.mark.parametrize("channels", [1, 3])
def test_uint8_pixels_give_probabilities(channels):
    config, model, variables, _ = network(SPECS["cifar_resnet20"], 16, channels)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, channels), np.uint8)
    expected = jax.nn.softmax(apply(model, variables, (pixels / np.float32(255) - 0.4) / 0.2))
    exported = to_onnx(config, variables, uint8=True)
    assert relative_error(run_onnx(exported, pixels), np.asarray(expected)) < 1e-5
    graph = onnx.load_from_string(exported).graph
    assert [value.name for value in (*graph.input, *graph.output)] == ["image", "probabilities"]


def shape_of(value):
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def test_input_and_output_have_a_symbolic_batch():
    config, model, variables, _ = network(SPECS["cifar_resnet20"], size=16)
    exported = to_onnx(config, variables)
    (image,), (logits,) = (getattr(onnx.load_from_string(exported).graph, name)
                           for name in ("input", "output"))  # fmt: skip
    assert (image.name, shape_of(image)) == ("image", ["n", 3, 16, 16])
    assert (logits.name, shape_of(logits)) == ("logits", ["n", 10])
    images = np.random.default_rng(2).standard_normal((5, 16, 16, 3)).astype(np.float32)
    assert relative_error(run_onnx(exported, images), apply(model, variables, images)) < 1e-5


def test_folded_v1_network_has_few_operators():
    config, _, variables, _ = network(SPECS["resnet18"])
    operators = {
        fold: {node.op_type for node in onnx.load_from_string(
            to_onnx(config, variables, fold=fold)).graph.node}
        for fold in (True, False)
    }  # fmt: skip
    plain = {"Conv", "Relu", "Add", "MaxPool", "GlobalAveragePool", "Flatten", "Gemm"}
    assert operators == {True: plain, False: plain | {"BatchNormalization"}}


def test_metadata_has_classes_and_preprocessing():
    config, _, variables, _ = network(SPECS["cifar_resnet20"])
    labels = tuple(f"kind {i}" for i in range(10))
    config = config._replace(labels=labels)
    model = onnx.load_from_string(to_onnx(config, variables))
    metadata = {p.key: json.loads(p.value) for p in model.metadata_props}
    assert tuple(metadata["class_names"]) == labels
    assert (metadata["mean"], metadata["std"], metadata["size"]) == ([0.4] * 3, [0.2] * 3, [33, 33])
    assert PretrainedConfig.from_json_dict(metadata["model"]) == config
    assert (model.producer_name, model.ir_version) == ("resflax", 8)


def test_every_operation_has_an_onnx_form():
    assert set(OPERATORS) == set(OPS) - {*JAX_ONLY}


def test_unknown_opset_is_refused():
    config, _, variables, _ = network(SPECS["cifar_resnet20"])
    with pytest.raises(UserError, match="opset is 12: expected an integer from 13 to 22"):
        to_onnx(config, variables, opset=12)


def test_models_beyond_two_gib_are_refused(monkeypatch):
    config, _, variables, _ = network(SPECS["cifar_resnet20"])
    monkeypatch.setattr("resflax.export.onnx.MAX_BYTES", 1000)
    with pytest.raises(UserError, match="expected less than 2 GiB, the limit of ONNX files"):
        to_onnx(config, variables)


def test_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(UserError, match=r'pip install "resflax\[onnx\]"'):
        to_onnx(*network(SPECS["cifar_resnet20"])[::2])
