"""Linear probe: against scikit-learn's own grid search, and the command on a trained network."""

import json
import sys

import jax
import numpy as np
import pytest
from helpers.commands import run_command, run_train

from resflax import UserError
from resflax.data import load_dataset, normalize
from resflax.evaluate.probe import CS, Features, count_fits, fit_probe
from resflax.weights import load_pretrained

pytest.importorskip("sklearn")


def clusters(n, classes=3, features=5, seed=0):
    """Returns overlapping Gaussian clusters, with features of very different scales."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(9).standard_normal((classes, features))
    labels = np.arange(n) % classes
    values = centers[labels] + rng.standard_normal((n, features))
    return Features((values * 10.0 ** np.arange(features)).astype(np.float32), labels)


@pytest.mark.slow
def test_probe_matches_the_grid_search_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, test, fits = clusters(90), clusters(60, seed=1), []
    probe = fit_probe(train, test, on_fit=lambda: fits.append(1))
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        {"logisticregression__C": list(CS)},
        cv=StratifiedKFold(3, shuffle=True, random_state=0),
    ).fit(train.values, train.labels)
    scores = search.cv_results_["mean_test_score"]
    np.testing.assert_allclose(list(probe.cv_accuracy.values()), scores)
    assert len(set(scores)) > 1
    assert probe.c == search.best_params_["logisticregression__C"]
    assert probe.accuracy == search.score(test.values, test.labels)
    assert len(fits) == count_fits(train.labels, CS) == 13
    assert (probe.folds, probe.converged) == (3, True)


def test_given_strength_needs_no_cross_validation():
    train = clusters(4, classes=3)  # one class has two examples, the others one
    probe = fit_probe(train, clusters(30, seed=1), cs=(0.1,))
    assert (probe.c, probe.folds, probe.cv_accuracy) == (0.1, 0, {})


def test_small_classes_have_fewer_folds():
    assert fit_probe(clusters(6), clusters(30, seed=1)).folds == 2


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (clusters(5), "label 2 has one training example, too few for cross validation: set --c"),
        (clusters(5, classes=1), "the training split has 1 class: expected two or more"),
    ],
)
def test_too_few_examples_raise_user_error(train, message):
    with pytest.raises(UserError, match=message):
        fit_probe(train, train)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A short run on the digits."""
    path = tmp_path_factory.mktemp("runs") / "digits"
    model = ("--config.model=cifar_resnet8", "--config.epochs=8", "--config.warmup_epochs=0")
    assert run_train("--config=configs/digits.py", *model, f"--workdir={path}") == 0
    return path


def features_of(pretrained, split):
    """Returns the pooled features by `model.apply` without a head."""
    preprocess = pretrained.preprocess
    model = pretrained.model.clone(spec=pretrained.model.spec.override(num_classes=0))
    x = normalize(split.images, mean=preprocess.mean, std=preprocess.std)
    values = jax.jit(lambda x: model.apply(pretrained.variables, x, train=False))(x)
    return Features(np.asarray(values), split.labels)


@pytest.mark.slow
def test_command_probes_the_features_of_a_run(workdir, tmp_path, capsys):
    assert run_command("probe", workdir, "--dataset=digits", f"--out={tmp_path}/probe") == 0
    values = json.loads((tmp_path / "probe" / "probe.json").read_text())
    assert values["accuracy"] > 0.95
    sizes = [values[key] for key in ("examples", "train_examples", "features")]
    assert sizes == [360, 1437, 64]
    pretrained, digits = load_pretrained(workdir), load_dataset("digits")
    train, test = (features_of(pretrained, split) for split in (digits.train, digits.test))
    expected = fit_probe(train, test, cs=(values["C"],)).accuracy
    assert abs(values["accuracy"] - expected) <= 1 / 360  # features are equal to rounding
    assert values["C"] in CS
    out = capsys.readouterr().out
    assert f"linear probe: accuracy {values['accuracy']:.4f} on 360 examples of" in out


def test_missing_scikit_learn_names_the_extra(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert run_command("probe", tmp_path, "--dataset=digits") == 2
    assert 'pip install "resflax[probe]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset=digits", "--c=0"], "--c is 0.0: expected a number above 0"),
        (["--dataset=digits", "--batch-size=0"], "--batch-size is 0: expected 1 or more"),
        (["--dataset=digits", "--out=README.md"], "is not a directory one can write to"),
        ([], "--dataset"),
        (["--dataset=digits"], ""),  # the folder has no weights
    ],
)
def test_invalid_argument_is_one_line(arguments, message, capsys, tmp_path):
    assert run_command("probe", tmp_path, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
