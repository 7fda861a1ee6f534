"""Members of an ensemble on several processes train as on one."""

import sys

import numpy as np
import pytest
from helpers.ensemble_process import MEMBER_DEVICES, PIPELINES, SIZE, STEPS
from helpers.processes import free_port, run_all


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder with the results of one process and of two, with four devices in all."""
    folder = tmp_path_factory.mktemp("ensembles")
    script = [sys.executable, "-m", "helpers.ensemble_process"]
    run_all([[*script, "0", "1", "0", str(folder)]], devices=4)
    port = str(free_port())
    run_all([[*script, port, "2", str(i), str(folder)] for i in range(2)], devices=2)
    return folder


@pytest.mark.multiprocess
@pytest.mark.slow
@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("member_devices", MEMBER_DEVICES)
def test_members_on_two_processes_train_as_on_one(folder, member_devices, pipeline):
    """Each process gets the results of all members; bit-identical if the batch is not split."""
    one, first, second = (
        np.load(folder / f"{member_devices}-{pipeline}-{process}.npz")
        for process in ("1-0", "2-0", "2-1")
    )
    assert one["losses"].shape == (STEPS, SIZE)
    assert len(np.unique(one["losses"])) == STEPS * SIZE
    for key in ("losses", "params"):
        assert first[key].tobytes() == second[key].tobytes()
        if member_devices == SIZE:
            assert first[key].tobytes() == one[key].tobytes()
        np.testing.assert_allclose(first[key], one[key], rtol=1e-5, atol=1e-6)
