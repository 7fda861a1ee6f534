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
from resflax.weights.average import average_weights, check_same_origin, have_same_batch_stats
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
    two = write_workdir(tmp_path / "two", SavedStep(1), SavedStep(2))
    with pytest.raises(UserError, match=f"such as {two}@last:2, an ensemble"):
        average_weights(read_ensemble([two]))
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


def write_networks(path, step, run_config, **options):
    """Writes a run, whose checkpoint records a config."""
    metadata = options.pop("metadata", {}) | {"config": run_config}
    return write_workdir(path, SavedStep(step), metadata=metadata, **options)


def ensemble_of(size):
    return {"ensemble": {"size": size, "seeds": [*range(size)], "dropped": []}}


def test_command_refuses_members_with_other_initial_parameters(tmp_path, capsys):
    config = {"seed": 0, "ensemble": {"size": 2, "share_init": False}}
    options = {"factors": np.float32([1, 2]), "metadata": ensemble_of(2)}
    path = write_networks(tmp_path / "e", 1, config, **options)
    words = [str(path), "--dataset=digits", f"--out={tmp_path}/average"]
    assert run_command("average", *words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{path}#0 and {path}#1 were trained from different initial parameters" in error
    assert "(seed 0; seed 1)" in error
    assert "average the checkpoints of a run that has kept several" in error
    assert not (tmp_path / "average").exists()


def test_networks_can_be_averaged_by_what_they_began_from(tmp_path):
    shared = {"seed": 0, "ensemble": {"size": 2, "share_init": True}}
    options = {"factors": np.float32([1, 2]), "metadata": ensemble_of(2)}
    path = write_networks(tmp_path / "shared", 1, shared, **options)
    assert check_same_origin(read_ensemble([path])) == ""
    runs = {
        "a": {"seed": 0},
        "b": {"seed": 0},
        "c": {"seed": 1},
        "fine": {"seed": 1, "pretrained": "net"},
        "tuned": {"seed": 2, "pretrained": "net"},
        "unknown": {},
    }
    paths = {
        name: write_networks(tmp_path / name, i, config)
        for i, (name, config) in enumerate(runs.items(), start=2)
    }
    for names in ("a b", "fine tuned"):
        assert check_same_origin(read_ensemble([paths[name] for name in names.split()])) == ""
    for names in ("a fine", "a unknown"):
        warning = check_same_origin(read_ensemble([paths[name] for name in names.split()]))
        assert warning.startswith("warning: it is not recorded that the networks began from the")
    with pytest.raises(UserError, match=r"\(seed 0; seed 1\), and the average of such parameters"):
        check_same_origin(read_ensemble([paths["a"], paths["unknown"], paths["c"]]))


def test_checkpoints_of_one_network_have_one_origin(workdir):
    """Also if their config is not recorded."""
    assert check_same_origin(read_ensemble([f"{workdir}@last:3"])) == ""


def test_members_of_one_efficient_network_are_not_averaged(tmp_path):
    spec = CONFIG.spec.override(ensemble="packed", members=2, alpha=2.0)
    config = CONFIG._replace(spec=spec)
    path = write_networks(tmp_path / "p", 1, {"seed": 0}, config=config)
    with pytest.raises(UserError, match=r"\(seed 0, member 0; seed 0, member 1\)"):
        check_same_origin(read_ensemble([path]))


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
