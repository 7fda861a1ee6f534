"""Runs with a validation split in the commands: training, evaluation, and pretrained weights."""

import json

import pytest

from resflax.cli.main import main
from resflax.train import default_config, fit

pytestmark = pytest.mark.slow


def make_config():
    config = default_config()
    config.model, config.batch_size, config.epochs = "cifar_resnet8", 240, 3
    config.spec.depths, config.spec.widths, config.spec.stem_width = (1,), (4,), 4
    config.data.train_split, config.data.validation = "train[:1200]", 0.2
    config.learning_rate, config.log_every_steps = 0.5, 100
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("split") / "run"
    return fit(make_config(), path, silent=True), path


def evaluate(where, tmp_path, *arguments):
    main(
        ["evaluate", where, f"--out={tmp_path}", "--calibrate=none", "--dtype=float32", *arguments]
    )
    return json.loads((tmp_path / "evaluation.json").read_text())


def test_results_name_the_splits(run):
    results, _ = run
    assert results["splits"] == {
        "train": "train[:1200], without held-out 0.2",
        "validation": "train[:1200], held-out 0.2",
        "test": "test",
    }
    assert results["train_examples"] + 240 == 1200
    assert (results["best_by"], results["test_examples"]) == ("validation", 360)


@pytest.mark.parametrize(
    ("split", "examples", "key"),
    [("", 360, "test"), ("validation", 240, "validation")],
)
def test_evaluation_of_a_run_has_the_accuracy_of_its_results(run, tmp_path, split, examples, key):
    results, path = run
    found = evaluate(str(path), tmp_path, f"--split={split}")
    assert found["examples"] == examples
    assert found["accuracy"] == pytest.approx(results[f"{key}_accuracy"], abs=2 / examples)


def test_best_by_validation_is_optimistic_only_there(run, tmp_path, capsys):
    results, path = run
    evaluate(f"{path}@best", tmp_path)
    printed = capsys.readouterr().out
    assert f"{results['best_validation_accuracy']:.4f} on the validation split, by which" in printed
    assert "by the accuracy on the run's own validation split\n" in printed
    evaluate(f"{path}@best", tmp_path / "validation", "--split=validation")
    assert "own validation split, so the results below are optimistic" in capsys.readouterr().out


def test_training_split_is_what_was_trained_on(run, tmp_path):
    results, path = run
    assert evaluate(str(path), tmp_path, "--split=train")["examples"] == results["train_examples"]
    assert evaluate(str(path), tmp_path / "x", "--split=train[:10%]")["examples"] == 144


def test_run_without_training_evaluates_both_splits(run, tmp_path):
    results, path = run
    config = make_config()
    config.pretrained, config.model, config.epochs = str(path), "", 0
    for field in ("depths", "widths", "stem_width"):
        config.spec[field] = None
    for key in ("learning_rate", "log_every_steps"):
        config[key] = default_config()[key]
    found = fit(config, tmp_path / "run", silent=True)
    assert found["params_sha256"] == results["params_sha256"]
    keys = ("test_accuracy", "validation_accuracy", "best_by", "splits")
    assert {key: found[key] for key in keys} == {key: results[key] for key in keys}
