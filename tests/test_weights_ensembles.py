"""Names of ensembles: members of a run, several checkpoints, several runs."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from helpers.weight_files import write_timm_folder
from helpers.workdirs import CLASSES, CONFIG, PREPROCESS, SavedStep, variables_at, write_workdir

from resflax import UserError, load_ensemble, load_pretrained
from resflax.weights import read_ensemble, read_members, read_weights
from resflax.weights.average import average_weights
from resflax.zoo import get_spec

SEEDS = (7, 8, 9)


def member_at(step, member, config=CONFIG):
    """Returns the raw weights of a member at a step."""
    return jax.tree.map(lambda a: a * np.float32(1 + member), variables_at(step, config))


def write_ensemble(path, *saved, dropped=(), **options):
    """Writes the workdir of an ensemble of three: `member_at` gives the weights."""
    factors = np.float32([1, 2, 3])
    ensemble = {"size": 3, "seeds": [*SEEDS], "dropped": [*dropped]}
    return write_workdir(path, *saved, factors=factors, metadata={"ensemble": ensemble}, **options)


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
    return write_ensemble(tmp_path_factory.mktemp("runs") / "e", SavedStep(5, 0.9), SavedStep(10))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "x"
    return write_workdir(path, SavedStep(5, 0.5), SavedStep(10, 0.9), SavedStep(15))


def assert_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def error_of(read, where, **options):
    with pytest.raises(UserError) as e:
        read(where, **options)
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize(
    ("suffix", "step", "members"),
    [
        ("", 10, (0, 1, 2)),
        ("@last", 10, (0, 1, 2)),
        ("@best", 5, (0, 1, 2)),
        ("#1", 10, (1,)),
        ("#2,0", 10, (2, 0)),
        ("@5#1,2", 5, (1, 2)),
    ],
)
def test_ensemble_names_its_members(ensemble, suffix, step, members):
    found = read_members(f"{ensemble}{suffix}")
    for weights, member in zip(found, members, strict=True):
        assert_equal(weights.variables, member_at(step, member))
        assert f" (step {step}" in weights.source
        assert f", member {member} of 3 (seed {SEEDS[member]}); normal" in weights.source
        assert weights.config == CONFIG
        [alone] = read_members(weights.where)
        assert_equal(alone.variables, weights.variables)


def test_one_member_is_read_like_a_run_of_one_network(ensemble):
    assert_equal(load_pretrained(f"{ensemble}@best#2").variables, member_at(5, 2))


def test_checkpoints_of_an_ensemble_come_one_after_another(ensemble):
    found = read_members(f"{ensemble}@10,5#0,2")
    names = [f"{ensemble}@{step}#{member}" for step in (10, 5) for member in (0, 2)]
    assert [weights.where for weights in found] == names
    for weights, (step, member) in zip(found, [(10, 0), (10, 2), (5, 0), (5, 2)], strict=True):
        assert_equal(weights.variables, member_at(step, member))


@pytest.mark.parametrize(
    ("suffix", "steps"),
    [("@5,15", (5, 15)), ("@15,5", (15, 5)), ("@last:2", (10, 15)), ("@last:1", (15,))],
)
def test_run_names_several_of_its_checkpoints(workdir, suffix, steps):
    found = read_members(f"{workdir}{suffix}")
    for weights, step in zip(found, steps, strict=True):
        assert_equal(weights.variables, variables_at(step))
        assert weights.where == f"{workdir}@{step}"
        assert weights.evaluation["steps"] == step


def test_dropped_member_is_left_out_and_reported(tmp_path):
    path, messages = write_ensemble(tmp_path / "e", SavedStep(5), dropped=[1]), []
    found = read_members(path, report=messages.append)
    assert [weights.where for weights in found] == [f"{path}#0", f"{path}#2"]
    assert messages == [f"{path}: left out member 1, which diverged"]
    messages.clear()
    assert_equal(read_weights(f"{path}#1", report=messages.append).variables, member_at(5, 1))
    assert messages == [f"{path}: member 1 diverged: these are its last finite weights"]


def test_ensemble_without_members_left_is_rejected(tmp_path):
    path = write_ensemble(tmp_path / "e", SavedStep(5), dropped=[0, 1, 2])
    assert "all 3 members diverged" in error_of(read_members, path, report=lambda text: None)


def test_evaluations_of_members_and_their_ensemble(tmp_path):
    test = {"accuracy": 0.9, "members": {"accuracy": [0.5, None, 0.7], "loss": [1.0, None, 3.0]}}
    path = write_ensemble(tmp_path / "e", SavedStep(5, 0.9), dropped=[1], test=test)
    first, last = read_members(path, report=lambda text: None)
    expected = {"steps": 5, "ensemble_accuracy": 0.9}
    assert first.evaluation == {**expected, "test_accuracy": 0.5, "test_loss": 1.0}
    assert last.evaluation == {**expected, "test_accuracy": 0.7, "test_loss": 3.0}
    [dropped] = read_members(f"{path}#1", report=lambda text: None)
    assert dropped.evaluation == expected


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        ("#3", "has no member 3: expected an index from 0 to 2"),
        ("#0,9", "has no member 9: expected an index from 0 to 2"),
        ("#0,1,0", "e#0,1,0: member 0 is given twice: expected it once"),
        ("#", "e#: '' does not name members: expected an index, "),
        ("#-1", "e#-1: '-1' does not name members: expected an index, "),
        ("@best#one", "e@best#one: 'one' does not name members: expected an index"),
        ("@5,5", "e@5,5: step 5 is given twice: expected it once"),
        ("@5,7", "has no checkpoint '7': expected last, best or a step: 5, 10; or several"),
        ("@last:3", "e has 2 checkpoints: expected @last:1 to @last:2, got @last:3"),
        ("@last:0", "e has 2 checkpoints: expected @last:1 to @last:2, got @last:0"),
        ("@last:", "has no checkpoint 'last:': expected last, best or a step: 5, 10"),
        ("-2#0", "e-2#0: folder not found: "),
        ("/checkpoints#0", "/checkpoints is not the workdir of a run, which # needs"),
        ("#1@best", "e#1@best: members come last: expected {0}@best#1"),
        ("#0,2@5", "e#0,2@5: members come last: expected {0}@5#0,2"),
    ],
)
def test_invalid_member_or_checkpoint_is_one_line(ensemble, suffix, message):
    assert message.format(ensemble) in error_of(read_members, f"{ensemble}{suffix}")


def test_members_of_a_run_of_one_network_are_rejected(workdir):
    message = f"{workdir} is a run of one network, and # chooses members of an ensemble"
    assert message in error_of(read_members, f"{workdir}#0")


def test_one_network_is_not_read_from_an_ensemble(ensemble, workdir):
    for where, number, example in (
        (ensemble, 3, f"{ensemble}#0"),
        (f"{ensemble}@best", 3, f"{ensemble}@best#0"),
        (f"{ensemble}#2,1", 2, f"{ensemble}#2"),
        (f"{workdir}@5,10", 2, f"{workdir}@5"),
    ):
        message = error_of(read_weights, where)
        assert message.startswith(f"{where} is an ensemble of {number} networks, and one network")
        assert message.endswith(f"expected one of its members, such as {example}")
        assert message == error_of(load_pretrained, where)


def test_history_says_how_far_the_run_has_come(tmp_path):
    config = {"epochs": 3, "batch_size": 10, "seed": 4}
    metadata = {"config": config, "data": {"splits": {"train": {"examples": 41}}}}
    path = write_workdir(tmp_path / "x", *map(SavedStep, (5, 10)), metadata=metadata)
    first, last = (network.history for network in read_members(f"{path}@5,10"))
    assert (str(first), str(last)) == (
        "step 5 (unfinished: step 10 of 13)",
        "step 10 (unfinished: step 10 of 13)",
    )
    path = write_workdir(tmp_path / "y", *map(SavedStep, (5, 13)), metadata=metadata)
    [early] = read_members(f"{path}@5")
    assert (str(early.history), early.history.is_unfinished) == ("step 5", False)


def test_path_may_contain_a_number_sign(tmp_path):
    plain = write_workdir(tmp_path / "a#1", SavedStep(3, 0.1), SavedStep(4, 0.0))
    assert_equal(load_pretrained(plain).variables, variables_at(4))
    assert_equal(load_pretrained(f"{plain}@best").variables, variables_at(3))
    path = write_ensemble(tmp_path / "b#1@best#0", SavedStep(3))
    assert len(read_members(path)) == len(read_members(f"{path}@last")) == 3
    assert_equal(load_pretrained(f"{path}#1").variables, member_at(3, 1))
    (tmp_path / "c#1").mkdir()
    folder = tmp_path / "c#1" / "net"
    write_timm_folder(folder)
    assert load_pretrained(folder).source.startswith(str(folder))
    message = f"file not found: {folder}-2#1.safetensors"
    assert error_of(read_weights, f"{folder}-2#1.safetensors") == message


def test_corrupt_checkpoint_is_replaced_among_the_last(tmp_path):
    path, messages = write_workdir(tmp_path / "x", *map(SavedStep, (1, 2, 3))), []
    manifest = path / "checkpoints" / "2" / "checksums.json"
    manifest.write_text(manifest.read_text()[:-5])
    found = read_members(f"{path}@last:2", report=messages.append)
    assert [weights.evaluation["steps"] for weights in found] == [1, 3]
    assert len(messages) == 1
    message = error_of(read_members, f"{path}@last:3", report=messages.append)
    assert message.startswith("only 2 valid checkpoints in ")
    assert "step 2" in error_of(read_members, f"{path}@1,2")


def test_members_can_normalize_images_differently(tmp_path, workdir):
    """Each member gets the images that it was trained on."""
    other = replace(PREPROCESS, mean=(0.45,), std=(0.6,))
    path = write_workdir(tmp_path / "y", SavedStep(2), config=CONFIG._replace(preprocess=other))
    loaded = load_ensemble([workdir, path])
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    images = np.stack([loaded.preprocess(image) for image in pixels])
    assert loaded.preprocess == PREPROCESS
    run = jax.jit(jax.vmap(partial(loaded.model.apply, train=False)))
    logits = run(loaded.variables, loaded.normalize(images))
    for member, where in enumerate((workdir, path)):
        model, variables, preprocess, *_ = load_pretrained(where)
        own = np.stack([preprocess(image) for image in pixels])
        expected = model.apply(variables, own, train=False)
        np.testing.assert_allclose(logits[member], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="normalize images differently .* resflax evaluate"):
        average_weights(read_ensemble([workdir, path]))


@pytest.mark.parametrize("scan", [True, False])
def test_loaded_ensemble_runs_under_vmap(tmp_path, scan):
    config = CONFIG._replace(spec=get_spec("cifar_resnet20").override(num_classes=10))
    path = write_ensemble(tmp_path / "e", SavedStep(5), config=config, scan=scan)
    loaded = load_ensemble(path, scan=not scan)
    images = np.random.default_rng(0).standard_normal((2, 8, 8, 1), np.float32)
    run = jax.vmap(partial(loaded.model.apply, train=False), in_axes=(0, None))
    logits = jax.jit(run)(loaded.variables, images)
    assert logits.shape == (3, 2, 10)
    for member in range(3):
        model, variables, *_ = load_pretrained(f"{path}#{member}", scan=False)
        expected = model.apply(variables, images, train=False)
        np.testing.assert_allclose(logits[member], expected, rtol=1e-4, atol=1e-4)
    assert (loaded.size, loaded.classes, loaded.preprocess) == (3, CLASSES, PREPROCESS)
    names = ", ".join(f"{path}#{member}" for member in range(3))
    assert loaded.source == f"ensemble of 3 networks: {names}"


def test_several_names_form_an_ensemble(ensemble, workdir):
    members = read_ensemble([workdir, f"{ensemble}#1", f"{workdir}@best"])
    expected = [variables_at(15), member_at(10, 1), variables_at(10)]
    for weights, variables in zip(members, expected, strict=True):
        assert_equal(weights.variables, variables)
    loaded = load_ensemble([workdir, f"{workdir}@best"])
    assert_equal(jax.tree.map(lambda a: a[1], loaded.variables), variables_at(10))


def test_members_get_the_class_names_of_the_others(tmp_path, workdir):
    unnamed = write_workdir(tmp_path / "y", SavedStep(2), config=CONFIG._replace(labels=()))
    assert [w.config.labels for w in read_ensemble([unnamed, workdir])] == [CLASSES, CLASSES]


def test_network_that_is_named_twice_is_rejected(ensemble, workdir):
    for wheres in ([workdir, f"{workdir}@15"], [ensemble, f"{ensemble}#1"]):
        assert "is given twice: expected each network once" in error_of(read_ensemble, wheres)


def test_members_for_other_data_are_rejected(tmp_path, workdir):
    configs = {
        "number of classes": CONFIG._replace(spec=CONFIG.spec.override(num_classes=3), labels=()),
        "crop_pct": CONFIG._replace(preprocess=replace(PREPROCESS, crop_pct=0.9)),
        "class names": CONFIG._replace(labels=tuple("abcdefghji")),
    }  # fmt: skip
    for i, (text, config) in enumerate(configs.items()):
        path = write_workdir(tmp_path / f"{i}", SavedStep(2), config=config)
        message = error_of(read_ensemble, [workdir, path])
        assert text in message
        assert message.startswith(f"{path} ")


def test_stacked_members_need_one_architecture(tmp_path, workdir):
    config = CONFIG._replace(spec=get_spec("cifar_resnet20").override(num_classes=10))
    path = write_workdir(tmp_path / "y", SavedStep(2), config=config)
    assert len(read_ensemble([workdir, path])) == 2
    assert "have different architectures" in error_of(load_ensemble, [workdir, path])
