"""Weights of runs: which checkpoint, which weights of it, and invalid workdirs."""

import json

import jax
import numpy as np
import pytest
from helpers.networks import variables_of
from helpers.workdirs import CLASSES, CONFIG, PREPROCESS, SavedStep, variables_at, write_workdir

from resflax import UserError, load_pretrained
from resflax.cli.weights import convert_main
from resflax.run.checkpoint import Checkpoint
from resflax.run.checkpointer import Checkpointer
from resflax.weights import load_file, read_weights, to_torch
from resflax.zoo import get_spec

FOUR = (SavedStep(5, 0.5), SavedStep(10, 0.9), SavedStep(15), SavedStep(20, 0.7))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return write_workdir(tmp_path_factory.mktemp("runs") / "x", *FOUR)


def assert_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def error_of(where, **options):
    with pytest.raises(UserError) as e:
        read_weights(where, **options)
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize(
    ("suffix", "step", "text"),
    [
        ("", 20, ", last checkpoint (step 20); normalization of the run"),
        ("@last", 20, ", last checkpoint (step 20); normalization of the run"),
        ("@15", 15, ", checkpoint (step 15); normalization of the run"),
        (
            "@best",
            10,
            ", best checkpoint (step 10, accuracy 0.9000 on the test split, by which it was"
            " chosen); normalization of the run",
        ),
    ],
)
def test_workdir_names_one_of_its_checkpoints(workdir, suffix, step, text):
    loaded = load_pretrained(f"{workdir}{suffix}")
    assert_equal(loaded.variables, variables_at(step))
    assert loaded.source == f"{workdir}{text}"
    assert (loaded.model.spec, loaded.preprocess) == (CONFIG.spec, PREPROCESS)
    assert loaded.classes == CLASSES


def test_workdir_path_may_contain_an_at_sign(tmp_path):
    path = write_workdir(tmp_path / "a@best", SavedStep(3, 0.1), SavedStep(4, 0.0))
    assert_equal(load_pretrained(path).variables, variables_at(4))
    assert_equal(load_pretrained(f"{path}@best").variables, variables_at(3))


def test_weights_are_those_that_the_run_evaluated(tmp_path):
    """EMA weights and precise batch statistics where they were saved."""
    rows = (
        SavedStep(1, 0.1),
        SavedStep(2, 0.1, precise_bn=True),
        SavedStep(3, 0.1, ema=True, precise_bn=True),
    )
    path = write_workdir(tmp_path / "x", *rows)
    for row, text in zip(rows, ("", ", precise", ", averaged weights, precise"), strict=True):
        weights = read_weights(f"{path}@{row.step}")
        raw, evaluated = variables_at(row.step), variables_at(row.step + 0.5)
        assert_equal(weights.variables["params"], (evaluated if row.ema else raw)["params"])
        stats = evaluated if row.precise_bn else raw
        assert_equal(weights.variables["batch_stats"], stats["batch_stats"])
        batch_norm = " batch norm" * row.precise_bn
        assert f"(step {row.step}){text}{batch_norm}; normalization" in weights.source


def test_averaged_weights_that_were_not_evaluated(tmp_path):
    path = write_workdir(
        tmp_path / "x", SavedStep(1, 0.1, ema=True, precise_bn=True), SavedStep(2, ema=True)
    )
    message = error_of(path)
    assert "at step 2 has averaged weights without batch statistics for them" in message
    assert f"use {path}@best" in message
    assert_equal(load_pretrained(f"{path}@best").variables, variables_at(1.5))


def test_averaged_weights_without_precise_bn_use_running_stats(tmp_path):
    """As for frozen batch norm, whose statistics do not change."""
    metadata = {"config": {"precise_bn_batches": 0}}
    path = write_workdir(tmp_path / "x", SavedStep(2, 0.5, ema=True), metadata=metadata)
    variables = load_pretrained(path).variables
    assert_equal(variables["params"], variables_at(2.5)["params"])
    assert_equal(variables["batch_stats"], variables_at(2)["batch_stats"])


@pytest.mark.parametrize("keys", [{"freeze_batch_norm": True}, {"batch_norm": "frozen"}])
def test_averaged_weights_share_frozen_batch_stats(keys, tmp_path):
    """Precise batch norm computes nothing for them, so that no evaluation is needed."""
    metadata = {"config": {"precise_bn_batches": 16, **keys}}
    path = write_workdir(tmp_path / "x", SavedStep(2, ema=True), metadata=metadata)
    variables = load_pretrained(path).variables
    assert_equal(variables["params"], variables_at(2.5)["params"])
    assert_equal(variables["batch_stats"], variables_at(2)["batch_stats"])


def test_scanned_run_gives_unrolled_and_stacked_variables(tmp_path):
    config = CONFIG._replace(spec=get_spec("cifar_resnet20").override(num_classes=10))
    path = write_workdir(tmp_path / "x", SavedStep(2), config=config, scan=True)
    assert_equal(read_weights(path).variables, variables_at(2, config))
    for scan in (True, False):
        model, variables, *_ = load_pretrained(path, scan=scan)
        shapes = variables_of(model, (1, 8, 8, 1))
        assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, shapes)


def test_network_without_batch_norm_has_parameters_only(tmp_path):
    spec = get_spec("cifar_resnet8").override(
        widths=(32, 32, 32), stem_width=32, norm="group", shortcut="B"
    )
    config = CONFIG._replace(spec=spec)
    path = write_workdir(tmp_path / "x", SavedStep(2, ema=True), config=config)
    variables = load_pretrained(path).variables
    assert_equal(variables, variables_at(2.5, config))
    assert variables.keys() == {"params"}


def corrupt(path, step):
    """Flips a bit in the largest file of a checkpoint."""
    files = [p for p in (path / "checkpoints" / str(step)).rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)


def test_corrupt_checkpoints_are_skipped_with_a_message(tmp_path):
    path = write_workdir(tmp_path / "x", *FOUR)
    corrupt(path, 20)
    corrupt(path, 10)
    for suffix, skipped, good in (("", [20], 15), ("@best", [10, 20], 5)):
        messages = []
        weights = read_weights(f"{path}{suffix}", report=messages.append)
        assert_equal(weights.variables, variables_at(good))
        for message, step in zip(messages, skipped, strict=True):
            start = f"warning: skipped, the checkpoint at step {step} of {path} is corrupt: "
            assert message.startswith(start)
    assert f"the checkpoint at step 20 of {path} is corrupt: " in error_of(f"{path}@20")
    corrupt(path, 15)
    corrupt(path, 5)
    for suffix in ("", "@best"):
        message = error_of(f"{path}{suffix}", report=messages.append)
        assert message.startswith(f"no valid checkpoint in {path / 'checkpoints'}")


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        ("@7", "has no checkpoint '7': expected last, best or a step: 5, 10, 15, 20"),
        ("@first", "has no checkpoint 'first': expected last, best or a step"),
        ("@", "has no checkpoint '': expected last, best or a step"),
        ("-2@best", "x-2@best: folder not found: "),
        ("/checkpoints@best", "/checkpoints is not the workdir of a run, which @ needs"),
    ],
)
def test_unknown_checkpoint_lists_the_steps(workdir, suffix, message):
    assert message in error_of(f"{workdir}{suffix}")


def test_workdir_without_checkpoint_is_rejected(tmp_path):
    path = write_workdir(tmp_path / "x")
    for where in (path, f"{path}@best"):
        assert error_of(where) == f"no checkpoint in {path}: train the run first"
    (path / "checkpoints").rmdir()  # as of a run that has just started
    assert error_of(path) == f"no checkpoint in {path}: train the run first"


def test_run_that_was_never_evaluated_has_no_best(tmp_path):
    path = write_workdir(tmp_path / "x", SavedStep(1), SavedStep(2))
    message = f"no checkpoint of {path} was evaluated: use {path}@last"
    assert error_of(f"{path}@best") == message


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (None, "trained a module of your own, which a checkpoint does not describe"),
        ({"spec": {}}, "the record of the model at step 2 is not valid: KeyError"),
        ([1], "the record of the model at step 2 is not valid: TypeError"),
    ],
)
def test_checkpoint_without_a_known_model_is_rejected(tmp_path, record, message):
    assert message in error_of(
        write_workdir(tmp_path / "x", SavedStep(2), metadata={"model": record})
    )


def test_checkpoint_of_an_earlier_version_is_rejected(tmp_path):
    path = write_workdir(tmp_path / "x")
    checkpointer = Checkpointer(path / "checkpoints", 1)
    metadata = {"config": {}, "trainer_state": {"evaluated": 0, "test": {}}}
    checkpointer.save(Checkpoint(2, {"state": variables_at(2)}, metadata))
    checkpointer.close()
    message = error_of(path)
    assert "step 2 was written by an earlier version, which did not record" in message
    assert message.endswith("train the run again")


def test_wrong_model_and_class_names_are_rejected(tmp_path, workdir):
    message = error_of(workdir, name="cifar_resnet20")
    assert "not variables of cifar_resnet20: " in message
    assert message.endswith(": these look like cifar_resnet8's")
    config = CONFIG._replace(labels=CLASSES[:9])
    path = write_workdir(tmp_path / "x", SavedStep(2), config=config)
    message = f"{path} has 9 class names for 10 classes: expected one per class"
    assert error_of(path) == message


def test_weights_file_in_a_workdir_has_no_config(workdir, tmp_path):
    """The config.json next to it is the run's, not timm's."""
    path = write_workdir(tmp_path / "x", SavedStep(2))
    convert_main([str(path), str(path / "model.safetensors")])
    weights = read_weights(path / "model.safetensors", "cifar_resnet8")
    assert weights.config.labels == ()
    assert "; default normalization of the architecture: mean 0.449," in weights.source
    assert_equal(weights.variables, variables_at(2))


def test_convert_writes_a_run_for_pytorch(workdir, tmp_path, capsys):
    target = tmp_path / "x.safetensors"
    convert_main([f"{workdir}@best", str(target)])
    expected = to_torch("cifar_resnet8", variables_at(10))
    arrays = load_file(target)
    assert arrays.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(arrays[key], array)
    source, written = capsys.readouterr().out.splitlines()
    assert "best checkpoint (step 10" in source
    assert written.endswith("names: cifar")
    header = target.read_bytes()[8:]
    assert json.JSONDecoder().raw_decode(header.decode("latin1"))[0]["__metadata__"] == {
        "format": "pt"
    }
