"""Evaluation under corruptions: sums, mean corruption error, the command and its errors."""

import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.processes import free_port, run_all
from helpers.workdirs import SavedStep, write_workdir

from resflax import UserError
from resflax.cli.evaluate import main as evaluate_main
from resflax.cli.main import main
from resflax.data import EvalTransform, StreamingSplit
from resflax.data.array_source import ArraySource
from resflax.data.corruptions import corrupt_batch
from resflax.data.in_memory import InMemorySplit
from resflax.evaluate.classes import make_label_map
from resflax.evaluate.corruption_report import CorruptionReference, corruption_results
from resflax.evaluate.corruptions import (
    Condition,
    CorruptedSums,
    corrupted_sums,
    evaluate_corrupted,
)
from resflax.evaluate.views import Views
from resflax.metrics import classification_metrics, log_mean_probability, log_softmax
from resflax.metrics.systems import make_systems

CLASSES, SIDE, COUNT = 3, 8, 21
SYSTEMS = make_systems(["a", "b"])


def member_logits(images, indices=None):
    """Returns logits of two members, from the means of parts of an image."""
    x = np.asarray(images, np.float64).reshape(len(images), -1, CLASSES) / 20
    return np.stack([x.mean(1), x[:, ::2].mean(1) + 0.1])


@pytest.fixture(scope="module")
def split():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (COUNT, SIDE, SIDE, 3), np.uint8)
    labels = (member_logits(images)[0] + rng.normal(0, 0.3, (COUNT, CLASSES))).argmax(-1)
    source = ArraySource("noise", InMemorySplit(images, labels.astype(np.int32)), tuple("abc"))
    transform = Views().transform(EvalTransform(size=(SIDE, SIDE), crop_pct=1.0))
    return StreamingSplit(source, SIDE, 3, eval_transform=transform)


def test_corrupted_sums_match_all_examples_at_once(split):
    conditions = [Condition("impulse_noise", 5), Condition("contrast", 2)]
    seen = []
    sums = evaluate_corrupted(
        member_logits, split, Views(), make_label_map((), CLASSES, split.source),
        corrupted_sums(SYSTEMS),
        conditions, seed=3, batch_size=16,
        on_batch=lambda examples, condition: seen.append((condition, examples)),
    )  # fmt: skip
    images, labels = split.source.split.images, split.source.split.labels
    for condition, evaluated in sums.items():
        found = evaluated.sums
        corrupted = corrupt_batch(
            condition.name, jnp.asarray(images), jnp.arange(COUNT), condition.severity, seed=3
        )
        log_p = log_softmax(member_logits(corrupted))
        for i, own in enumerate([log_mean_probability(log_p), *log_p]):
            expected = classification_metrics(own, labels)
            assert found.accuracy[i] == expected.accuracy
            np.testing.assert_allclose(found.mean_nll[i], expected.nll, rtol=1e-12)
            np.testing.assert_allclose(found.ece[i], expected.ece, rtol=1e-12)
        assert sum(n for c, n in seen if c == condition) == COUNT


def make_sums(errors):
    """Returns the sums of ten examples for each error in tenths."""
    bins = np.eye(15)[:1]
    return {
        condition: CorruptedSums(10 * bins, (10 - tenths) * bins, 7 * bins, np.array([5.0]))
        for condition, tenths in errors.items()
    }


def test_mean_corruption_error_is_relative_to_the_reference():
    errors = {("fog", 1): 2, ("fog", 3): 4, ("contrast", 1): 1, ("contrast", 3): 8}
    sums = make_sums({Condition(*key): value for key, value in errors.items()})
    reference = CorruptionReference(
        "other.json", 0.1, {"fog": np.array([0.5, 0.7]), "contrast": np.array([0.4, 0.5])}
    )
    values = corruption_results(sums, make_systems(["a"]), clean_accuracy=0.95, reference=reference)
    assert values["severities"] == [1, 3]
    assert values["accuracy"] == {"fog": [0.8, 0.6], "contrast": [0.9, pytest.approx(0.2)]}
    assert values["mean_error"] == pytest.approx((0.2 + 0.4 + 0.1 + 0.8) / 4)
    # Hendrycks and Dietterich 2019, section 4.1: 0.6 / 1.2 and 0.9 / 0.9.
    assert values["corruption_errors"] == pytest.approx({"fog": 0.5, "contrast": 1.0})
    assert values["mean_corruption_error"] == pytest.approx(0.75)
    # (0.6 - 2 * 0.05) / (1.2 - 2 * 0.1) and (0.9 - 2 * 0.05) / (0.9 - 2 * 0.1)
    relative = (0.5 / 1.0 + 0.8 / 0.7) / 2
    assert values["relative_mean_corruption_error"] == pytest.approx(relative)
    assert "members" not in values


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "x"
    write_workdir(path, SavedStep(1), factors=[1.0, 0.5], metadata=METADATA)
    config = {"dataset": "digits", "seed": 0, "data": {"data_dir": ""}, "dtype": "float32"}
    (path / "config.json").write_text(json.dumps(config))
    return path


METADATA = {"ensemble": {"size": 2, "seeds": [0, 1], "dropped": []}}
FLAGS = ("--calibrate=none", "--batch-size=360")


def evaluate(workdir, *flags):
    assert main(["evaluate", str(workdir), *FLAGS, *map(str, flags)]) == 0


@pytest.fixture(scope="module")
def evaluation(workdir, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation")
    evaluate(workdir, "--corruptions=brightness,contrast", "--severities=5,1", f"--out={out}")
    return out / "evaluation.json"


def test_command_writes_accuracy_by_corruption_and_severity(workdir, evaluation, capsys):
    values = json.loads(evaluation.read_text())["corruptions"]
    assert values["severities"] == [1, 5]
    assert values["parameters"] == "CIFAR-10-C"
    assert [len(values["accuracy"][name]) for name in ("brightness", "contrast")] == [2, 2]
    assert [list(member["nll"]) for member in values["members"]] == [["brightness", "contrast"]] * 2
    assert (evaluation.parent / "corruptions.png").read_bytes().startswith(b"\x89PNG")
    # Compared with itself, also if the reference has more severities.
    reference = f"--corruption-reference={evaluation}"
    out = evaluation.parent / "again"
    evaluate(workdir, "--corruptions=contrast", "--severities=5", reference, f"--out={out}")
    again = json.loads((out / "evaluation.json").read_text())["corruptions"]
    assert again["accuracy"]["contrast"] == values["accuracy"]["contrast"][1:]
    assert again["mean_corruption_error"] == pytest.approx(1.0)
    assert "mean corruption error             1.0000  of that of" in capsys.readouterr().out


@pytest.mark.multiprocess
def test_two_processes_corrupt_every_example_once(workdir, evaluation, tmp_path):
    command = [sys.executable, "-m", "resflax", "evaluate", str(workdir), *FLAGS]
    command += ["--corruptions=brightness,contrast", "--severities=5,1", f"--out={tmp_path}"]
    address = f"--coordinator=127.0.0.1:{free_port()}"
    run_all(
        [
            [*command, "--distributed", address, "--num_processes=2", f"--process_id={index}"]
            for index in range(2)
        ],
        devices=2,
    )
    values, expected = (
        json.loads(path.read_text())["corruptions"]
        for path in (tmp_path / "evaluation.json", evaluation)
    )
    assert values["accuracy"] == expected["accuracy"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--corruptions=fogg"], "unknown corruption 'fogg': did you mean fog"),
        (["--corruptions", "--severities=0,1"], "--severities is '0,1': expected different"),
        (["--corruptions", "--severities=2,2"], "--severities is '2,2': expected different"),
        (["--severities=2"], "--severities is given without --corruptions: expected both"),
        (["--corruptions=saturate"], "corruption 'saturate' needs color images, and the model"),
        (["--corruptions", "--scales=8,16"], "--corruptions needs images of the network's input"),
        (["--corruptions", "--corruption-reference=none.json"], "cannot read the corruption refer"),
    ],
)
def test_invalid_corruption_flag_is_one_line(workdir, flags, message):
    with pytest.raises(UserError, match=message) as error:
        evaluate_main([str(workdir), *FLAGS, *flags])
    assert "\n" not in str(error.value)


def test_reference_must_have_the_corruptions(workdir, evaluation, tmp_path):
    flag = f"--corruption-reference={evaluation}"
    with pytest.raises(
        UserError, match=r"lacks fog, severity 2: expected a reference with the same"
    ):
        evaluate_main([str(workdir), *FLAGS, "--corruptions=fog", "--severities=2,5", flag])
    other = tmp_path / "other.json"
    other.write_text('{"accuracy": 0.5}')
    flag = f"--corruption-reference={other}"
    with pytest.raises(UserError, match="has no results under corruptions"):
        evaluate_main([str(workdir), *FLAGS, "--corruptions=fog", flag])
