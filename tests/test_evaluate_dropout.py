"""`resflax evaluate --mc-dropout`: samples of one network as the members of an ensemble."""

import json

import jax
import numpy as np
import pytest
from helpers.commands import run_command
from helpers.networks import run as compiled
from helpers.workdirs import CONFIG, SavedStep, variables_at, write_workdir

from resflax.data import load_dataset, normalize
from resflax.evaluate.classifier import DropoutClassifier
from resflax.metrics import classification_metrics, log_mean_probability, log_softmax
from resflax.nn import sample_logits
from resflax.weights import read_weights
from resflax.zoo import create_model

DROPOUT = CONFIG._replace(spec=CONFIG.spec.override(dropout=0.4), labels=tuple("0123456789"))
DROP_PATH = DROPOUT._replace(spec=CONFIG.spec.override(drop_path=0.5))
PREPROCESS = CONFIG.preprocess
DATA = {"data_dir": "", "image_size": 0, "channels": 0, "on_bad_example": "raise"}


def write_run(path, config=DROPOUT, ensemble=None, **options):
    """Writes a run on the digits that held out nothing."""
    write_workdir(path, SavedStep(5, 0.5), config=config, **options)
    run = {"dataset": "digits", "model": "", "epochs": 1, "seed": 0, "dtype": "float32"}
    run |= {"data": DATA | {"validation": 0.0}, "ensemble": ensemble or {}}
    (path / "config.json").write_text(json.dumps(run))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A network with dropout."""
    return write_run(tmp_path_factory.mktemp("runs") / "d")


@pytest.fixture(scope="module")
def images():
    return load_dataset("digits").test.images


def classifier(config, samples, variables=None):
    return DropoutClassifier(
        config.spec,
        variables_at(5, config) if variables is None else variables,
        samples=samples,
        mean=PREPROCESS.mean,
        std=PREPROCESS.std,
    )


def expected_logits(config, images, indices, samples):
    """Returns the result of `sample_logits` with the key of seed 0 and each index."""
    key = jax.random.key(0)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(np.asarray(indices))
    x = normalize(images, mean=PREPROCESS.mean, std=PREPROCESS.std)
    model = create_model(config.spec, scan=False)
    sample = lambda v, x, keys: sample_logits(model, v, x, keys, samples)  # noqa: E731
    return np.asarray(compiled(sample, variables_at(5, config), x, keys))


def test_report_has_the_metrics_of_the_mean_of_the_samples(run, images, tmp_path, capsys):
    words = [run, "--mc-dropout=3", f"--out={tmp_path}", "--calibrate=test", "--conformal=0.1"]
    assert run_command("evaluate", *words, "--ood=fake:8x8x1:2:80") == 0
    assert (
        "3 samples of MC dropout (dropout 0.4, drop path 0, drop block 0)"
        in capsys.readouterr().out
    )
    values = json.loads((tmp_path / "evaluation.json").read_text())
    logits = expected_logits(DROPOUT, images, range(len(images)), 3)
    labels = load_dataset("digits").test.labels
    log_p = log_softmax(logits)
    expected = classification_metrics(log_mean_probability(log_p), labels)
    for key in ("accuracy", "nll", "brier", "ece"):
        np.testing.assert_allclose(values["ensemble"][key], getattr(expected, key), rtol=1e-3)
    for s, member in enumerate(values["members"]):
        assert member["where"] == f"{run}, sample {s}"
        own = classification_metrics(log_p[s], labels)
        np.testing.assert_allclose(member["nll"], own.nll, rtol=1e-3)
    rates = {"dropout": 0.4, "drop_path": 0.0, "drop_block": 0.0}
    assert values["mc_dropout"] == {"samples": 3, "seed": 0, **rates}
    assert {"calibrated", "conformal", "ood", "size_curve", "members_mean"} <= values.keys()
    assert values["ensemble"]["mutual_information"] > 0
    assert "deep_ensemble_equivalent" not in values  # the samples are not a deep ensemble
    assert (tmp_path / "size.png").exists()


@pytest.mark.parametrize("config", [DROPOUT, DROP_PATH], ids=["dropout", "drop path"])
def test_samples_depend_on_the_index_only(config, images):
    """Neither on the batch, nor on the number of samples, nor on the order."""
    assert jax.device_count() == 8
    indices = np.array([5, 300, 7, 12, 0, 33, 2, 1, 101, 6, 11])
    logits = np.asarray(classifier(config, 4).members(images[indices], indices))[:, :11]
    expected = expected_logits(config, images[indices], indices, 4)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    fewer = np.asarray(classifier(config, 2).members(images[indices[3:5]], indices[3:5]))
    np.testing.assert_allclose(fewer[:, :2], logits[:2, 3:5], rtol=1e-4, atol=1e-4)


def test_mean_of_many_logits_is_the_logit_without_dropout(images):
    """Dropout before a linear head leaves the expectation of the logits unchanged."""
    samples, model = 2000, create_model(DROPOUT.spec, scan=False)
    logits = np.asarray(classifier(DROPOUT, samples).members(images[:3], np.arange(3)))[:, :3]
    x = normalize(images[:3], mean=PREPROCESS.mean, std=PREPROCESS.std)
    expected = model.apply(variables_at(5, DROPOUT), x, train=False)
    error = np.abs(logits.mean(0) - expected) / (logits.std(0) / np.sqrt(samples))
    assert error.max() < 5
    assert logits.std(0).min() > 0


@pytest.mark.slow
def test_rate_of_a_member_is_that_of_the_ensemble_config(tmp_path):
    """`config.ensemble.drop_path` has a rate per member, which the spec does not record."""
    run = write_run(
        tmp_path / "e",
        DROP_PATH,
        ensemble={"drop_path": [0.1, 0.3]},
        factors=np.float32([1, 1.1]),
        metadata={"ensemble": {"size": 2, "seeds": [0, 1], "dropped": []}},
    )
    words = [f"{run}#1", "--mc-dropout=2", f"--out={tmp_path}/out", "--calibrate=none"]
    assert run_command("evaluate", *words) == 0
    values = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert values["mc_dropout"]["drop_path"] == 0.3
    assert read_weights(f"{run}#1").config.spec.drop_path == 0.5


INVALID = {
    "one sample": (["{d}", "--mc-dropout=1"], "--mc-dropout is 1: expected the number of samples"),
    "no sample": (["{d}", "--mc-dropout=0"], "--mc-dropout is 0: expected the number of samples"),
    "several networks": (["{d}", "{s}", "--mc-dropout=3"], "one network, and WHERE names 2: name"),
    "no dropout": (["{s}", "--mc-dropout=3"], "has none: expected a run that was trained with"),
    "selection": (["{d}", "--mc-dropout=3", "--select=1"], "--select chooses networks"),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_sampling_is_one_line(name, run, tmp_path, capsys):
    arguments, message = INVALID[name]
    single = write_run(tmp_path / "s", DROPOUT._replace(spec=CONFIG.spec))
    words = [argument.format(d=run, s=single) for argument in arguments]
    assert run_command("evaluate", *words, f"--out={tmp_path}/out") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
