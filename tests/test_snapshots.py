"""Snapshot ensembles: the checkpoints at the ends of the learning rate's cycles."""

import json

import numpy as np
import pytest
from helpers.records import read_records
from helpers.workdirs import SavedStep, write_workdir

from resflax import UserError
from resflax.run.signals import Interrupt, InterruptedRunError
from resflax.train import default_config
from resflax.train.launch import fit
from resflax.weights.readers import read_members

ENDS = [3, 7, 11, 15]  # of four cycles of 15 steps


class InterruptAfter(Interrupt):
    """SIGTERM the n-th time that the loop asks; never for 0."""

    def __init__(self, number=0):
        self.number, self.asked = number, 0

    @property
    def received(self):
        self.asked += 1
        return 15 * (0 < self.number <= self.asked)


def make_config():
    config = default_config()
    config.dataset, config.model = "digits", "cifar_resnet8"
    config.epochs, config.batch_size, config.learning_rate = 5, 480, 0.1
    config.schedule, config.schedule_cycles = "cosine_cycles", 4
    config.checkpoint_max_to_keep, config.eval_every_epochs = 2, 5
    return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "x"
    fit(make_config(), path, silent=True)
    return path


def list_snapshots(path):
    return sorted(int(folder.name) for folder in (path / "checkpoints").iterdir())


@pytest.mark.slow
def test_snapshots_are_kept_and_evaluated(workdir):
    assert set(ENDS) <= set(list_snapshots(workdir))
    records = read_records(workdir)
    tests = [record for record in records if record["split"] == "test"]
    assert [record["step"] for record in tests] == ENDS
    named, listed = read_members(f"{workdir}@cycles"), read_members(f"{workdir}@3,7,11,15")
    assert [weights.where for weights in named] == [f"{workdir}@{step}" for step in ENDS]
    for one, other in zip(named, listed, strict=True):
        np.testing.assert_equal(one.variables, other.variables)
    first, last = (weights.variables["params"]["head"]["kernel"] for weights in named[::3])
    assert (first != last).any()


@pytest.mark.slow
@pytest.mark.parametrize("number", [4, 9])  # about the ends of the first two cycles
def test_resumed_snapshots_have_the_same_bits(workdir, tmp_path, number):
    path = tmp_path / "x"
    with pytest.raises(InterruptedRunError):
        fit(make_config(), path, interrupt=InterruptAfter(number), silent=True)
    results = fit(make_config(), path, silent=True)
    expected = json.loads((workdir / "results.json").read_text())
    assert results["params_sha256"] == expected["params_sha256"]
    pairs = zip(read_members(f"{path}@cycles"), read_members(f"{workdir}@cycles"), strict=True)
    for one, other in pairs:
        np.testing.assert_equal(one.variables, other.variables)


def test_missing_snapshot_is_an_error(tmp_path):
    """Of the ends 1, 2, 3 and 5, the second is missing, and the last one is not reached."""
    steps = [SavedStep(step) for step in (1, 3, 4)]
    path = write_workdir(tmp_path / "x", *steps, metadata={"snapshots": [1, 2, 3, 5]})
    with pytest.raises(UserError, match=r"no checkpoint at step 2, where a cycle .* as @1,3$"):
        read_members(f"{path}@cycles")


def test_snapshots_so_far_are_those_of_a_run_in_progress(tmp_path):
    steps = [SavedStep(step) for step in (1, 3, 4)]
    path = write_workdir(tmp_path / "x", *steps, metadata={"snapshots": [1, 3, 5]})
    names = [weights.where for weights in read_members(f"{path}@cycles")]
    assert names == [f"{path}@1", f"{path}@3"]


def test_run_without_cycles_has_no_snapshots(tmp_path):
    path = write_workdir(tmp_path / "x", SavedStep(1))
    with pytest.raises(UserError, match="has no checkpoint at the end of a cycle: expected a run"):
        read_members(f"{path}@cycles")
