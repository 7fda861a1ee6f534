"""`resflax evaluate` on ensembles: members, several runs, held-out data, selection, detection."""

import csv
import json
import re
from dataclasses import replace
from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.image_folders import write_folder
from helpers.networks import apply
from helpers.workdirs import PREPROCESS, SavedStep, write_workdir
from sklearn.metrics import roc_auc_score

from resflax.cli.main import main
from resflax.data import load_dataset, normalize
from resflax.data.corruptions import corrupt_batch
from resflax.data.held_out import split_labels
from resflax.evaluate.classifier import EnsembleClassifier
from resflax.metrics import classification_metrics, log_mean_probability, log_softmax
from resflax.weights import PretrainedConfig, load_ensemble, read_ensemble
from resflax.zoo import create_model, get_spec

MEMBERS = 3
CONFIG = PretrainedConfig(get_spec("cifar_resnet8"), 1, PREPROCESS, tuple("0123456789"))
DATA = {
    "data_dir": "",
    "image_size": 0,
    "channels": 0,
    "on_bad_example": "raise",
    "validation": 0.2,
    "validation_seed": 0,
}


def set_config(path, **data):
    """Writes the config of a run on the digits, as `data.validation` holds out examples."""
    run = {"dataset": "digits", "model": "", "epochs": 1, "seed": 0, "dtype": "float32"}
    (path / "config.json").write_text(json.dumps(run | {"data": DATA | data}))
    return path


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
    """The run of an ensemble of three, with weights of random numbers."""
    path = tmp_path_factory.mktemp("runs") / "e"
    config = {"epochs": 1, "batch_size": 100, "seed": 0}
    metadata = {
        "ensemble": {"size": MEMBERS, "seeds": [0, 1, 2], "dropped": []},
        "config": config,
        "data": {"splits": {"train": {"examples": 1151}}},
    }
    write_workdir(
        path,
        SavedStep(5, 0.5),
        config=CONFIG,
        metadata=metadata,
        factors=np.float32([1, 1.1, 1.3]),
    )
    return set_config(path)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """A run that held out nothing."""
    path = tmp_path_factory.mktemp("runs") / "s"
    other = replace(PREPROCESS, mean=(0.4,), std=(0.35,))  # of more training data
    write_workdir(path, SavedStep(7, 0.5), config=CONFIG._replace(preprocess=other))
    return set_config(path, validation=0.0)


@pytest.fixture(scope="module")
def divided(tmp_path_factory):
    """A run that held out other examples."""
    path = tmp_path_factory.mktemp("runs") / "o"
    write_workdir(path, SavedStep(9, 0.5), config=CONFIG)
    return set_config(path, validation_seed=1)


@pytest.fixture(scope="module")
def evaluation(ensemble, tmp_path_factory):
    """The ensemble evaluated with every option."""
    out = tmp_path_factory.mktemp("evaluation") / "new"
    options = ("--conformal=0.1", "--select=2", "--ood=fake:9x7x3:2:160")
    evaluate(ensemble, f"--out={out}", f"--predictions={out}/tables/p.csv", *options)
    return out


def evaluate(*arguments):
    assert main(["evaluate", *map(str, arguments)]) == 0


def read(out):
    return json.loads((out / "evaluation.json").read_text())


def logits_of(where, images):
    """Returns the logits of `model.apply`, by member, each with its own normalization."""
    wheres = where if isinstance(where, list) else [where]
    logits = []
    for network in read_ensemble(wheres):
        preprocess = network.config.preprocess
        x = normalize(images, mean=preprocess.mean, std=preprocess.std)
        logits.append(apply(create_model(CONFIG.spec), network.variables, x))
    return np.stack(logits)


@cache
def predictions_of(*wheres):
    """Returns the log-probabilities of `model.apply`, by member, on the digits, and the labels."""
    test = load_dataset("digits").test
    return log_softmax(logits_of([*wheres], test.images)), test.labels


def jax_index(tree, i):
    if isinstance(tree, dict):
        return {key: jax_index(value, i) for key, value in tree.items()}
    return tree[i]


def test_ensemble_has_the_metrics_of_its_mean_probabilities(ensemble, evaluation):
    values = read(evaluation)
    log_p, labels = predictions_of(ensemble)
    expected = classification_metrics(log_mean_probability(log_p), labels)
    for key in ("accuracy", "nll", "brier", "ece"):
        np.testing.assert_allclose(values["ensemble"][key], getattr(expected, key), rtol=1e-3)
        assert values[key] == values["ensemble"][key]
    for k, member in enumerate(values["members"]):
        own = classification_metrics(log_p[k], labels)
        np.testing.assert_allclose(member["nll"], own.nll, rtol=1e-3)
        assert member["where"] == f"{ensemble}#{k}"
    assert values["ensemble"]["nll"] < values["members_mean"]["nll"]
    assert values["calibration"] == {
        "data": "held-out training data",
        "examples": 286,
        "splits": 1,
        "temperatures": 1,
    }


def test_member_alone_has_its_metrics_in_the_ensemble(ensemble, evaluation, tmp_path, capsys):
    evaluate(f"{ensemble}#1", f"--out={tmp_path}")
    values, member = read(tmp_path), read(evaluation)["members"][1]
    assert "members" not in values
    assert values["checkpoints"] == [{"where": f"{ensemble}#1", "step": 5, "unfinished": True}]
    assert "checkpoint: step 5 (unfinished: step 5 of 12)\n" in capsys.readouterr().out
    for key in ("accuracy", "nll", "brier", "aurc"):
        np.testing.assert_allclose(values[key], member[key], rtol=1e-5)
        np.testing.assert_allclose(values["calibrated"][key], member["calibrated"][key], rtol=1e-4)


def test_several_runs_form_an_ensemble(ensemble, single, tmp_path, capsys):
    """Each with its own mean and standard deviation."""
    evaluate(f"{ensemble}#0", f"--out={tmp_path}", single, "--calibrate=test")
    values = read(tmp_path)
    assert values["normalization"] == [
        {"mean": [0.3], "std": [0.2]},
        {"mean": [0.4], "std": [0.35]},
    ]
    assert [m["where"] for m in values["members"]] == [f"{ensemble}#0", str(single)]
    assert values["calibration"] == {
        "data": "the other half of the split",
        "examples": 180,
        "splits": 5,
        "temperatures": 10,
    }
    assert "calibrated with 10 temperatures, mean " in capsys.readouterr().out
    log_p, labels = predictions_of(f"{ensemble}#0", single)
    expected = classification_metrics(log_mean_probability(log_p), labels)
    np.testing.assert_allclose(values["nll"], expected.nll, rtol=1e-3)


def test_selection_names_the_members_for_other_commands(ensemble, evaluation, tmp_path):
    selected = read(evaluation)["selected"]
    assert re.fullmatch(rf"{re.escape(str(ensemble))}#[012],[012]", selected["where"])
    evaluate(selected["where"], f"--out={tmp_path}", "--calibrate=none")
    values = read(tmp_path)
    np.testing.assert_allclose(values["nll"], selected["nll"], rtol=1e-5)
    assert "calibrated" not in values


def test_reports_have_every_part(evaluation, ensemble, capsys):
    values = read(evaluation)
    assert set(values["conformal"]) == {"alpha", "lac", "aps", "raps"}
    assert "conformal" not in values["selected"]
    detected = values["ood"]["fake:9x7x3:2:160"]
    assert detected["examples"] == 20
    assert set(detected["scores"]) == {"max_probability", "energy", "entropy", "mutual_information"}
    assert values["deep_ensemble_equivalent"]["reference"] == "its own members"
    assert values["deep_ensemble_equivalent"]["members"] == MEMBERS
    for name in ("reliability", "confusion", "risk_coverage", "size"):
        assert (evaluation / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with (evaluation / "tables" / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    information = [float(row["mutual_information"]) for row in rows]
    np.testing.assert_allclose(np.mean(information), values["ensemble"]["mutual_information"])


def test_deep_ensemble_is_a_reference_for_other_networks(ensemble, evaluation, tmp_path, capsys):
    """The best member is as good as some number of members between one and all."""
    file = evaluation / "evaluation.json"
    members = [member["calibrated"]["nll"] for member in read(evaluation)["members"]]
    curve = read(evaluation)["size_curve"]["calibrated_nll"]
    best = int(np.argmin(members))
    assert curve[0] > members[best] > curve[-1]
    evaluate(f"{ensemble}#{best}", f"--out={tmp_path}", f"--deep-ensemble={file}")
    found = read(tmp_path)["deep_ensemble_equivalent"]
    assert found["reference"] == str(file)
    expected = np.interp(-members[best], np.negative(curve), [1, 2, 3])
    np.testing.assert_allclose(found["members"], expected, rtol=1e-3)
    assert "by the calibrated likelihood as good as" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("packed", {"alpha": 2.0}),
        pytest.param("batch", {}, marks=pytest.mark.slow),
        pytest.param("mimo", {}, marks=pytest.mark.slow),
    ],
)
def test_deep_ensemble_is_a_reference_for_efficient_ones(evaluation, tmp_path, name, fields):
    spec = CONFIG.spec.override(ensemble=name, members=2, **fields)
    write_workdir(tmp_path / "x", SavedStep(5), config=CONFIG._replace(spec=spec))
    run = set_config(tmp_path / "x")
    file = evaluation / "evaluation.json"
    evaluate(run, f"--out={tmp_path}/out", f"--deep-ensemble={file}")
    values, curve = read(tmp_path / "out"), read(evaluation)["size_curve"]["calibrated_nll"]
    assert [member["where"] for member in values["members"]] == [f"{run}#0", f"{run}#1"]
    found, nll = values["deep_ensemble_equivalent"], values["calibrated"]["nll"]
    expected = np.interp(-nll, np.negative(curve), [1, 2, 3]) if nll >= curve[-1] else None
    assert found == {"members": pytest.approx(expected), "reference": str(file)}


def test_unlabeled_folder_is_another_dataset(ensemble, tmp_path):
    rng = np.random.default_rng(0)
    files = {f"{i}.png": rng.integers(0, 256, (12, 15, 3), np.uint8) for i in range(5)}
    folder = write_folder(tmp_path / "images", files)
    evaluate(ensemble, f"--out={tmp_path}/out", f"--ood={folder}", "--calibrate=none")
    assert read(tmp_path / "out")["ood"][folder]["examples"] == 5


def test_members_on_eight_devices_equal_the_models(ensemble):
    networks = load_ensemble(ensemble)
    pre = networks.preprocess
    members = [(CONFIG.spec, jax_index(networks.variables, i)) for i in range(MEMBERS)]
    classify = EnsembleClassifier(members, mean=[pre.mean] * MEMBERS, std=[pre.std] * MEMBERS)
    assert len(classify.devices) == 8
    images = load_dataset("digits").test.images[:11]
    logits = np.asarray(classify.members(images, np.arange(11)))[:, :11]
    expected = predictions_of(ensemble)[0][:, :11]
    np.testing.assert_allclose(log_softmax(logits), expected, rtol=1e-3, atol=1e-4)


def test_corrupted_images_are_detected(ensemble, tmp_path):
    name = "corrupted:gaussian_noise:5"
    evaluate(ensemble, f"--out={tmp_path}", f"--ood={name}", "--calibrate=none")
    detected = read(tmp_path)["ood"][name]
    assert detected["examples"] == 360
    images = load_dataset("digits").test.images
    corrupted = corrupt_batch("gaussian_noise", jnp.asarray(images), jnp.arange(360), 5, seed=0)
    logits = [logits_of(ensemble, part) for part in (images, corrupted)]
    energy = np.concatenate([-np.log(np.exp(part).sum(-1)).mean(0) for part in logits])
    expected = roc_auc_score(np.repeat([0, 1], 360), energy)
    assert abs(expected - 0.5) > 0.01  # so that the orientation matters
    np.testing.assert_allclose(detected["scores"]["energy"]["auroc"], expected, atol=1e-3)


def test_training_split_is_without_the_calibration_data(ensemble, tmp_path):
    evaluate(ensemble, f"--out={tmp_path}", "--split=train")
    values, train = read(tmp_path), load_dataset("digits").train
    indices = split_labels(train.labels, DATA["validation"], DATA["validation_seed"])
    assert (values["examples"], values["calibration"]["examples"]) == (1151, 286)
    assert values["split"] == "digits, train, without held-out 0.2"
    log_p = log_softmax(logits_of(ensemble, train.images[indices.train]))
    expected = classification_metrics(log_mean_probability(log_p), train.labels[indices.train])
    np.testing.assert_allclose(values["nll"], expected.nll, rtol=1e-3)
    assert values["class_examples"] == np.bincount(train.labels[indices.train]).tolist()


# Arguments, and a regular expression for the error. {e}, {s} and {o} are the runs.
INVALID = {
    "conformal 1": (["{e}", "--conformal=1"], "--conformal is 1: expected a number between"),
    "conformal without calibration": (
        ["{e}", "--conformal=0.1", "--calibrate=none"],
        "--conformal needs calibration",
    ),
    "no held-out data": (
        ["{s}", "--calibrate=held-out"],
        "data.validation 0: train with --config.data.validation=0.1",
    ),
    "selection without held-out data": (
        ["{e}", "{s}", "--select=1"],
        "--select=1 needs held-out training data",
    ),
    "selection of all members": (["{e}", "--select=3"], "expected fewer than the 3 members"),
    "selection of one network": (["{e}#0", "--select=1"], "is one network: expected an ensemble"),
    "no selection": (["{e}", "--select=0"], "--select is 0: expected the number of members, 1"),
    "conformal 0": (["{e}", "--conformal=0"], "--conformal is 0: expected a number between 0"),
    "detection of nothing": (["{e}", "--ood="], "--ood is '': expected the name of a dataset"),
    "selection of no member": (["{e}", "--select=-1"], "expected the number of members"),
    "selection on test data": (["{e}", "--select=1", "--calibrate=test"], "held-out training data"),
    "member twice": (["{e}", "{e}#1"], "is given twice"),
    "runs that held out other examples": (
        ["{e}", "{o}", "--calibrate=held-out"],
        "held out different examples",
    ),
    "unknown member": (["{e}#7"], "has no member 7"),
    "other dataset twice": (["{e}", "--ood=digits", "--ood=digits"], "has a dataset twice"),
    "unknown other dataset": (
        ["{e}", "--ood=digitz"],
        "did you mean digits.*; it takes digits, a prepared TFDS .* corrupted:NAME:SEVERITY or",
    ),
    "corruptions before WHERE": (
        ["--corruptions", "{e}"],
        "put WHERE first, or write --corruptions=NAMES",
    ),
    "unwritable predictions": (["{e}", "--predictions={e}/config.json/p.csv"], "one can write to"),
    "predictions in a folder's place": (["{e}", "--predictions={e}"], "name of a file"),
    "unknown corruption": (["{e}", "--ood=corrupted:fogg:1"], "did you mean fog"),
    "unknown severity": (["{e}", "--ood=corrupted:fog:6"], "a severity from 1 to 5"),
    "missing reference": (["{e}", "--deep-ensemble=/none"], "cannot read the deep ensemble /none"),
    "reference that is none": (
        ["{e}", "--deep-ensemble={e}/config.json"],
        "is not the evaluation of a calibrated ensemble",
    ),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_options_are_one_line(name, ensemble, single, divided, tmp_path, capsys):
    arguments, message = INVALID[name]
    words = [argument.format(e=ensemble, s=single, o=divided) for argument in arguments]
    out = tmp_path / "out"
    assert main(["evaluate", *words, f"--out={out}"]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1, captured.err
    assert re.search(message, captured.err), captured.err
    assert not out.exists()
