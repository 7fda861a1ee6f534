"""Averages of networks: parameters in closed form, batch statistics of training data, errors."""

import json

import jax
import numpy as np
import pytest
from helpers.commands import run_command
from helpers.workdirs import CONFIG, SavedStep, variables_at, write_workdir

from resflax import load_pretrained
from resflax.data import load_dataset
from resflax.errors import UserError
from resflax.weights import read_ensemble
from resflax.weights.average import average_weights, have_same_batch_stats
from resflax.zoo import get_spec


@pytest.fixture
def workdir(tmp_path):
    """A run with checkpoints at steps 1, 2 and 3."""
    return write_workdir(tmp_path / "run", *(SavedStep(step) for step in (1, 2, 3)))


def set_config(workdir, **config):
    (workdir / "config.json").write_text(json.dumps(config))


def expected_params(steps):
    trees = [variables_at(step)["params"] for step in steps]
    return jax.tree.map(lambda *arrays: np.mean(arrays, 0, dtype=np.float64), *trees)


def assert_trees_close(tree, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), tree, expected
    )


def test_average_is_the_mean_of_the_parameters(workdir):
    average = average_weights(read_ensemble([f"{workdir}@last:3"]))
    assert_trees_close(average.variables["params"], expected_params((1, 2, 3)))
    assert average.source.startswith("average of 3 networks: ")
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(average.variables))


def test_average_of_members_is_their_mean(tmp_path):
    path = write_workdir(
        tmp_path / "members",
        SavedStep(1),
        factors=(1.0, 2.0, 6.0),
        metadata={"ensemble": {"size": 3, "seeds": [0, 1, 2], "dropped": []}},
    )
    average = average_weights(read_ensemble([path]))
    expected = jax.tree.map(lambda a: 3 * a, expected_params((1,)))
    assert_trees_close(average.variables["params"], expected)


def test_average_refuses_one_network_and_other_architectures(tmp_path, workdir):
    with pytest.raises(UserError, match="an average needs two or more"):
        average_weights(read_ensemble([workdir]))
    config = CONFIG._replace(spec=get_spec("cifar_resnet14"))
    other = write_workdir(tmp_path / "other", SavedStep(1), config=config)
    with pytest.raises(UserError, match="have different architectures: expected one"):
        average_weights(read_ensemble([workdir, other]))


def test_equal_batch_statistics_are_recognized(workdir):
    one, two = read_ensemble([f"{workdir}@1,2"])
    assert not have_same_batch_stats((one, two))
    stats = one.variables["batch_stats"]
    frozen = two._replace(variables={**two.variables, "batch_stats": stats})
    assert have_same_batch_stats((one, frozen))


@pytest.mark.slow
def test_command_recomputes_the_batch_statistics(workdir, tmp_path, capsys):
    """The statistics of the first norm are those of the first convolution of all images."""
    arguments = ("--dataset=digits", "--batch-size=479", f"--out={tmp_path}/average")
    assert run_command("average", f"{workdir}@1,3", *arguments) == 0
    assert "batch statistics: of 1,437 images of digits, train" in capsys.readouterr().out
    loaded = load_pretrained(tmp_path / "average")
    params, stats = loaded.variables["params"], loaded.variables["batch_stats"]
    assert_trees_close(params, expected_params((1, 3)))
    preprocess = CONFIG.preprocess
    images = (load_dataset("digits").train.images / 255 - preprocess.mean) / preprocess.std
    features = jax.lax.conv_general_dilated(
        images.astype(np.float32),
        params["stem_conv"]["kernel"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    features = np.asarray(features, np.float64).reshape(-1, features.shape[-1])
    norm = stats["stem_norm"]
    np.testing.assert_allclose(norm["mean"], features.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm["var"], features.var(0), rtol=1e-4)
    assert (loaded.classes, loaded.preprocess) == (CONFIG.labels, preprocess)


def set_validation(workdir, share):
    data = {"validation_seed": 0, "image_size": 0, "on_bad_example": "raise", "data_dir": ""}
    data |= {"validation": share, "channels": 0}
    set_config(workdir, dataset="digits", data=data, seed=0, dtype="float32")


@pytest.mark.slow
@pytest.mark.parametrize("dataset", [[], ["--dataset=digits"]], ids=["default", "named"])
def test_command_leaves_out_what_the_run_held_out(workdir, tmp_path, capsys, dataset):
    set_validation(workdir, 0.1)
    out = tmp_path / "average"
    words = [f"{workdir}@last:2", "--batch-size=1293", f"--out={out}", *dataset]
    assert run_command("average", *words) == 0
    assert "of 1,293 images" in capsys.readouterr().out
    assert "average of 2 networks" in (out / "README.md").read_text()


@pytest.mark.parametrize("dataset", [[], ["--dataset=digits"]], ids=["default", "named"])
def test_command_refuses_different_training_data(workdir, tmp_path, capsys, dataset):
    other = write_workdir(tmp_path / "other", SavedStep(4))
    set_validation(workdir, 0.1)
    set_validation(other, 0.0)
    out = tmp_path / "average"
    assert run_command("average", str(workdir), str(other), f"--out={out}", *dataset) == 2
    assert "the runs held out different examples" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("where", "options", "message"),
    [
        ("@last", ["--dataset=digits"], "an average needs two or more"),
        ("@last:2", [], "expected --dataset=NAME"),
        ("@last:4", ["--dataset=digits"], "has 3 checkpoints"),
        ("@last:2", ["--dataset=digits", "--images=1"], "--images is 1: expected 2 or more"),
        ("@last:2", ["--dataset=digits", "--out={run}"], "a folder with other files"),
        ("@last:2", ["--dataset=digits", "--split=valid"], "valid"),
    ],
)
def test_command_refuses_invalid_input(workdir, tmp_path, capsys, where, options, message):
    set_config(workdir, dataset="", data={}, seed=0, dtype="float32")
    out = [] if any("--out" in option for option in options) else [f"--out={tmp_path}/average"]
    words = [option.format(run=workdir) for option in options] + out
    assert run_command("average", f"{workdir}{where}", *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.strip().count("\n") == 0
    assert not (tmp_path / "average").exists()
