"""Ensembles as one ONNX or StableHLO model that returns the mean probabilities."""

import json
from functools import partial

import jax
import numpy as np
import pytest
from helpers.commands import run_command
from helpers.networks import randomized
from helpers.trained_models import trained_model
from helpers.workdirs import CLASSES, CONFIG, SavedStep, write_workdir

from resflax import UserError
from resflax.export import ExportOptions, TrainedEnsemble, export, load_trained_model
from resflax.weights.shapes import variable_shapes
from resflax.zoo import create_model

FORMATS = ["onnx", "stablehlo"]
MEAN, STD = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.3, 0.25])
SIZE = (12, 20)


def random_members(name, count=3, **overrides):
    """Returns models with different random weights."""
    first = trained_model(name, size=SIZE, num_classes=5, **overrides)
    shapes = variable_shapes(first.spec)
    return tuple(first._replace(variables=randomized(shapes, seed)) for seed in range(count))


@pytest.fixture(scope="module")
def ensemble():
    return TrainedEnsemble(random_members("cifar_resnet8"), "ensemble of 3 networks: a test")


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(5).integers(0, 256, (6, *SIZE, 3), np.uint8)


def normalized(pixels):
    return ((pixels / 255 - MEAN) / STD).astype(np.float32)


def mean_softmax(logits):
    """Returns the mean of the softmax of `(members, n, classes)`, in float64."""
    logits = np.asarray(logits, np.float64)
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return (exponentials / exponentials.sum(-1, keepdims=True)).mean(0)


def expected_probabilities(members, images):
    """Returns the mean of the softmax of `jax.vmap(model.apply)`."""
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *(m.variables for m in members))
    model = create_model(members[0].spec, scan=False)
    run = jax.vmap(partial(model.apply, train=False), in_axes=(0, None))
    return mean_softmax(jax.jit(run)(stacked, images))


def run_file(path, batch):
    """Returns the outputs of an exported file for an NHWC batch, by ONNX Runtime or JAX."""
    if path.suffix == ".onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert [output.name for output in session.get_outputs()] == ["probabilities"]
        feed = batch if batch.dtype == np.uint8 else batch.transpose(0, 3, 1, 2)
        return session.run(["probabilities"], {"image": np.ascontiguousarray(feed)})[0]
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    return np.asarray(exported.call(batch))


def assert_same(probabilities, expected):
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(1), expected.argmax(1))


def skip_without_onnx(format):
    if format == "onnx":
        pytest.importorskip("onnx")


@pytest.mark.parametrize("uint8", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_file_returns_the_mean_probabilities(ensemble, pixels, tmp_path, format, uint8):
    skip_without_onnx(format)
    report = export(ensemble, tmp_path / f"net.{format}", options=ExportOptions(uint8=uint8))
    images = normalized(pixels)
    assert len(report.verifications) == 1
    expected = expected_probabilities(ensemble.members, images)
    assert_same(run_file(report.path, pixels if uint8 else images), expected)
    assert_same(run_file(report.path, (pixels if uint8 else images)[:1]), expected[:1])


@pytest.mark.parametrize("format", FORMATS)
def test_members_can_have_other_architectures(pixels, tmp_path, format):
    skip_without_onnx(format)
    members = (
        random_members("cifar_resnet8", 1)[0],
        random_members("cifar_resnet8", 1, shortcut="B")[0],
    )
    report = export(TrainedEnsemble(members, "two"), tmp_path / f"net.{format}")
    images = normalized(pixels)
    expected = np.mean([expected_probabilities([member], images) for member in members], axis=0)
    assert_same(run_file(report.path, images), expected)


@pytest.mark.parametrize("uint8", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_members_can_normalize_images_differently(pixels, tmp_path, format, uint8):
    """Images are normalized for the first member, and mapped to the others' normalization."""
    skip_without_onnx(format)
    mean, std = np.array([0.1, 0.5, 0.2]), np.array([0.4, 0.2, 0.3])
    [first] = random_members("cifar_resnet8", 1)
    other = {"mean": tuple(mean.tolist()), "std": tuple(std.tolist())}
    [second] = random_members("cifar_resnet8", 1, preprocess=other)
    members = (first, second._replace(variables=randomized(second.variables, 1)))
    path = tmp_path / f"net.{format}"
    export(TrainedEnsemble(members, "two"), path, options=ExportOptions(uint8=uint8))
    own = [normalized(pixels), ((pixels / 255 - mean) / std).astype(np.float32)]
    pairs = zip(members, own, strict=True)
    expected = np.mean([expected_probabilities([m], images) for m, images in pairs], axis=0)
    found = run_file(path, pixels if uint8 else own[0])
    assert_same(found, expected)
    unmapped = expected_probabilities(members, own[0])
    assert np.abs(unmapped - expected).max() > 0.01  # so that the map matters


def test_batch_norm_is_in_the_model_without_folding(ensemble, pixels, tmp_path):
    onnx = pytest.importorskip("onnx")
    report = export(ensemble, tmp_path / "net.onnx", options=ExportOptions(fold=False, opset=15))
    model = onnx.load(report.path)
    assert model.opset_import[0].version == 15
    names = [node.name for node in model.graph.node if node.op_type == "BatchNormalization"]
    assert len(names) == len({*names}) == 3 * 7
    expected = expected_probabilities(ensemble.members, normalized(pixels))
    assert_same(run_file(report.path, normalized(pixels)), expected)


def test_pixels_are_normalized_once(ensemble, tmp_path):
    onnx = pytest.importorskip("onnx")
    report = export(ensemble, tmp_path / "net.onnx", options=ExportOptions(uint8=True))
    operators = [node.op_type for node in onnx.load(report.path).graph.node]
    assert operators.count("Cast") == operators.count("Mean") == 1
    assert operators.count("Softmax") == 3


@pytest.mark.parametrize("format", FORMATS)
def test_outputs_of_other_weights_are_detected(ensemble, tmp_path, format, monkeypatch):
    skip_without_onnx(format)
    from resflax.export import formats

    row = formats.FORMATS[format]
    other = ensemble._replace(members=(*ensemble.members[:2], ensemble.members[1]))
    wrong = row._replace(write=lambda model, path, options: row.write(other, path, options))
    monkeypatch.setitem(formats.FORMATS, format, wrong)
    with pytest.raises(UserError, match="computes other outputs .* nothing was written"):
        export(ensemble, tmp_path / f"net.{format}")
    assert [*tmp_path.iterdir()] == []


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The workdirs of an ensemble of two, the second of them worse, and of a single network."""
    root = tmp_path_factory.mktemp("runs")
    test = {
        "accuracy": 0.75,
        "loss": 0.5,
        "members": {"accuracy": [0.7, 0.6], "loss": [0.8, 0.9]},
    }
    write_workdir(
        root / "e",
        SavedStep(5, 0.75),
        SavedStep(10, 0.75),
        factors=np.float32([1, 0.5]),
        test=test,
        metadata={"ensemble": {"size": 2, "seeds": [0, 1], "dropped": []}},
    )
    results = {"steps": 10, "test_accuracy": 0.75, "test_loss": 0.5, "platform": "cpu"}
    results |= {"ensemble": {"nll": 0.5, "mutual_information": 0.125}, "members": [{}, {}]}
    (root / "e" / "results.json").write_text(json.dumps(results))
    write_workdir(root / "x", SavedStep(3, 0.5))
    return root


def test_results_are_those_of_the_ensemble_or_the_member(runs):
    ensemble = load_trained_model(f"{runs}/e").run.results
    assert (ensemble["test_accuracy"], ensemble["ensemble"]["nll"]) == (0.75, 0.5)
    earlier = load_trained_model(f"{runs}/e@5").run.results
    assert earlier == {"steps": 5, "test_accuracy": 0.75, "test_loss": 0.5}
    member = load_trained_model(f"{runs}/e#1").run.results
    expected = {"steps": 10, "test_accuracy": 0.6, "test_loss": 0.9, "platform": "cpu"}
    assert member == expected
    assert load_trained_model(f"{runs}/e@5#1").run.results == {**earlier, **dict(
        test_accuracy=0.6, test_loss=0.9)}  # fmt: skip
    assert load_trained_model(f"{runs}/e@5,10").run.results == {}
    assert load_trained_model([f"{runs}/e", f"{runs}/x"]).run is None


@pytest.mark.parametrize("format", FORMATS)
def test_file_describes_the_ensemble(runs, tmp_path, format):
    skip_without_onnx(format)
    out = tmp_path / f"net.{format}"
    assert run_command("export", runs / "e", out) == 0
    if format == "onnx":
        import onnx

        model = onnx.load(out)
        values = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
        assert model.doc_string == values["ensemble"]["description"]
        assert values["class_names"] == [*CLASSES]
    else:
        values = json.loads((tmp_path / "net.stablehlo.json").read_text())
        assert values["output"] == "probabilities"
    assert values["model"] == CONFIG.to_json_dict()
    record = values["ensemble"]
    assert (record["size"], record["results"]["test_accuracy"]) == (2, 0.75)
    assert [member["spec"] for member in record["members"]] == 2 * [CONFIG.to_json_dict()["spec"]]
    for text in (
        "Ensemble of 2 image classifiers",
        "returns the mean of their probabilities",
        "On the test split: accuracy 0.75, nll 0.5, mutual information 0.125.",
    ):
        assert text in record["description"]


def test_several_names_are_exported_as_one_model(runs, tmp_path, capsys):
    out = tmp_path / "net.stablehlo"
    assert run_command("export", runs / "x", f"{runs}/e#1", out) == 0
    assert capsys.readouterr().out.startswith("exported ensemble of 2 networks: ")
    assert json.loads((tmp_path / "net.stablehlo.json").read_text())["ensemble"]["size"] == 2


@pytest.mark.parametrize("format", ["timm", "transformers"])
def test_formats_of_one_network_refuse_an_ensemble(runs, tmp_path, capsys, format):
    assert run_command("export", runs / "e", tmp_path / "net", f"--format={format}") == 2
    error = capsys.readouterr().err
    assert f"--format={format} holds one network, and this is an ensemble of 2 networks" in error
    assert f"export one of them, such as {runs}/e#0, or the mean" in error
    assert error.count("\n") == 1
    assert [*tmp_path.iterdir()] == []


def test_one_member_is_exported_like_a_single_network(runs, tmp_path):
    assert run_command("export", f"{runs}/e#1", tmp_path / "net") == 0
    card = (tmp_path / "net" / "README.md").read_text()
    assert "member 1 of 2 (seed 1)" in card
    assert "| accuracy | 0.6 |" in card


def test_unknown_member_is_one_line(runs, tmp_path, capsys):
    assert run_command("export", f"{runs}/e#2", tmp_path / "net.stablehlo") == 2
    error = capsys.readouterr().err
    assert error == f"error: {runs}/e has no member 2: expected an index from 0 to 1\n"
    assert [*tmp_path.iterdir()] == []
