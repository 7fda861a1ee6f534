"""Runs with a validation split: it chooses the best checkpoint; the test split is for the end."""

import dataclasses

import numpy as np
import pytest
from helpers.modules import NormNet
from helpers.records import read_records, read_reproducible

from resflax.data import InMemorySplit, load_dataset
from resflax.run.signals import Interrupt, InterruptedRunError
from resflax.train import Trainer, Workdir, build, default_config, loop
from resflax.train.config import to_json_dict
from resflax.train.results import MEASURED
from resflax.weights.run_checkpoints import read_checkpoints
from resflax.weights.workdirs import split_checkpoint

STEPS = 30  # two epochs of 15 steps


def make_dataset():
    """Returns the digits with 720 training, 100 validation and 48 test images."""
    digits = load_dataset("digits")

    def part(split, start, stop):
        return InMemorySplit(split.images[start:stop], split.labels[start:stop])

    return dataclasses.replace(
        digits,
        train=part(digits.train, 0, 720),
        validation=part(digits.train, 720, 820),
        test=part(digits.test, 0, 48),
    )


DATASET = make_dataset()


def make_trainer(**keys):
    config = default_config()
    config.epochs, config.batch_size, config.precise_bn_batches = 2, 48, 2
    config.update_from_flattened_dict(keys)
    return Trainer(build(config, model=NormNet(), dataset=DATASET))


def fit(trainer, path, interrupt=None):
    with Workdir.open(path, to_json_dict(trainer.config)) as workdir:
        return loop.fit(trainer, workdir, interrupt=interrupt)


@pytest.fixture(scope="module")
def trainer():
    return make_trainer()


@pytest.fixture(scope="module")
def run(trainer, tmp_path_factory):
    """The results and the directory of a run."""
    path = tmp_path_factory.mktemp("run")
    return fit(trainer, path), path


def test_validation_split_is_evaluated_and_test_split_at_the_end(run):
    results, path = run
    validation, test = read_records(path, "validation"), read_records(path, "test")
    assert [record["step"] for record in validation] == [15, STEPS]
    assert [record["step"] for record in test] == [STEPS]
    assert read_records(path)[-1] == test[0]
    last = {f"{record['split']}_{k}": record[k] for record in (validation[-1], test[0]) for k in
            ("loss", "accuracy")}  # fmt: skip
    assert last.items() <= results.items()
    assert (results["test_examples"], results["train_examples"]) == (48, 720)


def test_best_checkpoint_is_chosen_by_the_validation_split(run):
    results, path = run
    accuracies = [record["accuracy"] for record in read_records(path, "validation")]
    best = (15, STEPS)[int(np.argmax(accuracies))]
    assert (results["best_by"], results["best_step"]) == ("validation", best)
    assert results["best_validation_accuracy"] == max(accuracies)
    [checkpoint] = read_checkpoints(split_checkpoint(f"{path}@best"), lambda c: c, print)
    assert (checkpoint.step, checkpoint.accuracy) == (best, max(accuracies))


def test_last_checkpoint_has_the_metrics_of_both_splits(run):
    results, path = run
    [checkpoint] = read_checkpoints(split_checkpoint(str(path)), lambda c: c, print)
    keys = ("validation_accuracy", "validation_loss", "test_accuracy", "test_loss")
    assert {key: results[key] for key in keys}.items() <= checkpoint.evaluation(None).items()


class StopAfter(Interrupt):
    """Becomes SIGTERM when it has been asked `calls` times."""

    def __init__(self, calls):
        self.calls = calls

    @property
    def received(self):
        self.calls -= 1
        return 15 * (self.calls < 0)


# How often the loop asks for a signal in an evaluation: before each of two batches of precise BN,
# three of the validation split, and at the end one of the test split.
ASKED = STEPS + (2 + 3) + (2 + 3 + 1)
WHERE = {"test split": 1, "validation split": 3, "precise BN": 5, "training": 7}


@pytest.mark.parametrize("before_end", WHERE.values(), ids=WHERE)
def test_run_stopped_in_any_evaluation_is_bit_identical(trainer, run, before_end, tmp_path):
    results, path = run
    with pytest.raises(InterruptedRunError):
        fit(trainer, tmp_path, StopAfter(ASKED - before_end))
    assert not (tmp_path / "results.json").exists()
    assert (tmp_path / "checkpoints" / str(STEPS)).is_dir()
    resumed = fit(trainer, tmp_path)
    assert {k: v for k, v in resumed.items() if k not in MEASURED} == {
        k: v for k, v in results.items() if k not in MEASURED
    }
    assert read_reproducible(tmp_path) == read_reproducible(path)
    evaluated = {split_checkpoint(f"{p}@best"): p for p in (path, tmp_path)}
    best = [read_checkpoints(name, lambda c: c.checksums, print) for name in evaluated]
    assert best[0] == best[1]
