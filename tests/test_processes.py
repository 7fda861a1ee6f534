"""Several processes on this machine, over loopback: the run that one process would make."""

import dataclasses
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.one_process import TREE
from PIL import Image

from resflax import UserError
from resflax.distributed.processes import DistributedConfig, all_gather_strings

sys.path.insert(0, str(Path(__file__).parent / "faults"))
import devices
from devices import Layout

ROOT = Path(__file__).parents[1]
ENGINES = ("pmap", "mesh")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run_all(commands, devices):
    """Runs commands side by side, each with some virtual devices; all must succeed."""
    env = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    running = [
        subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for command in commands
    ]
    try:
        said = [process.communicate(timeout=300)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * len(running), said
    return said


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What one process and two saw, and the folder with it."""
    folder = tmp_path_factory.mktemp("processes")
    rng = np.random.default_rng(1)
    for split in ("train", "test"):
        for name in "ab":
            (folder / "set" / split / name).mkdir(parents=True)
            for i in range(13):
                shape = (rng.integers(9, 20), rng.integers(9, 20), 3)
                image = Image.fromarray(rng.integers(0, 256, shape, np.uint8))
                image.save(folder / "set" / split / name / f"{i}.png")
    script = [sys.executable, "tests/one_process.py"]
    run_all([[*script, "0", "1", "0", str(folder)]], devices=4)
    port = str(free_port())
    run_all([[*script, port, "2", str(i), str(folder)] for i in range(2)], devices=2)
    return folder


@pytest.mark.parametrize("start", [0, 37])
@pytest.mark.parametrize("parallel", ENGINES)
def test_two_processes_see_what_one_does_bit_for_bit(seen, parallel, start):
    """On both roads, with 0 and 2 loader workers; from the start and from step 37."""

    def load(name):
        with np.load(seen / f"{parallel}-{name}.npz") as file:
            return {key: file[key] for key in ("image", "label", "index")}

    kinds = ["memory-host_feed-0", "memory-device_feed-0", "stream-host_feed-0"]
    found = {kind: load(f"{kind}-{start}-1-0") for kind in [*kinds, "stream-host_feed-2"]}
    for kind, whole in found.items():
        parts = [load(f"{kind}-{start}-2-{i}") for i in range(2)]
        for key, value in whole.items():
            assert value.shape[:2] == (4, 16)
            rows = [part[key] for part in parts]
            assert np.concatenate(rows, 1).tobytes() == value.tobytes()
    for one, other in (kinds[:2], ["stream-host_feed-0", "stream-host_feed-2"]):
        for key, value in found[one].items():
            assert value.tobytes() == found[other][key].tobytes()


def test_the_second_has_the_arrays_of_the_first_bit_for_bit(seen):
    with np.load(seen / "told-1.npz") as told:
        assert set(told) == set(TREE)
        for name, value in TREE.items():
            assert told[name].dtype == value.dtype
            assert told[name].shape == value.shape
            assert told[name].tobytes() == value.tobytes()


KEYS = ["--config.model=cifar_resnet8", "--config.epochs=1", "--config.log_every_steps=1"]
by_mpi = pytest.mark.skipif(not shutil.which("mpirun"), reason="no mpirun")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process on one device."""
    return devices.train(tmp_path_factory.mktemp("alone"), Layout("pmap", 1), KEYS)


@pytest.mark.parametrize(
    "layout",
    [
        Layout("pmap", 2, 2),
        Layout("mesh", 2, 2),
        Layout("pmap", 4, 4),
        Layout("mesh", 4, 4, fsdp=2),
        pytest.param(Layout("pmap", 2, 2, launcher="mpirun"), marks=by_mpi),
        pytest.param(Layout("mesh", 2, 2, launcher="mpirun"), marks=by_mpi),
    ],
)
def test_processes_train_as_one_and_the_first_alone_writes(tmp_path, alone, layout):
    row = devices.compare(layout, devices.train(tmp_path, layout, KEYS), alone)
    assert row.largest < 1e-5
    assert row.params < 1e-4
    said = [path.read_text() for path in sorted(tmp_path.glob("*.log"))]
    assert len(said) == (1 if layout.launcher == "mpirun" else layout.processes)
    assert "test accuracy" in said[0]
    assert "".join(said).count("test accuracy") == 1
    [path] = tmp_path.glob("*/results.json")
    results = json.loads(path.read_text())
    assert results["process_count"] == results["device_count"] == layout.processes
    assert results["test_examples"] == 360


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (DistributedConfig(False, "host:1", 2, 0), "need --distributed"),
        (DistributedConfig(True, "host:1", 2), "expected all of --coordinator=HOST:PORT"),
        (DistributedConfig(True, "host:1", 0, 0), "--num_processes is 0: expected 1 or more"),
        (DistributedConfig(True, "host:1", 2, 2), "--process_id is 2: expected from 0 to 1"),
    ],
)
def test_half_said_is_refused(said, problem):
    with pytest.raises(UserError, match=re.escape(problem)):
        said.check()


def under_mpi(monkeypatch, **more):
    for name, value in {"SIZE": "2", "RANK": "1", "LOCAL_SIZE": "2", **more}.items():
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", value)


def test_under_open_mpi_5_the_processes_of_a_machine_find_each_other(monkeypatch):
    monkeypatch.setenv("PMIX_NAMESPACE", "prterun-host-77@1")
    under_mpi(monkeypatch)
    second = DistributedConfig(True).found()
    under_mpi(monkeypatch, RANK="0")
    first = DistributedConfig(True).found()
    assert (second.count, second.number) == (2, 1)
    assert first == dataclasses.replace(second, number=0)
    assert re.fullmatch(r"127\.0\.0\.1:6[1-5]\d{3}", first.coordinator)
    assert (
        DistributedConfig().found() == DistributedConfig()
    )  # each for itself, as it was not asked


def test_under_open_mpi_of_several_machines_the_coordinator_alone_is_said(monkeypatch):
    under_mpi(monkeypatch, LOCAL_SIZE="1")
    assert DistributedConfig(True, "host:1").found() == DistributedConfig(True, "host:1", 2, 1)
    with pytest.raises(UserError, match="does not tell which machine process 0 is on"):
        DistributedConfig(True).found()
    assert DistributedConfig(True, "host:1", 3, 2).found() == DistributedConfig(
        True, "host:1", 3, 2
    )
    monkeypatch.setenv("OMPI_MCA_orte_hnp_uri", "1.0;tcp://10.0.0.1:99")  # version 4
    assert DistributedConfig(True).found() == DistributedConfig(True)


def test_alone_a_list_is_itself():
    assert all_gather_strings(["b", "a"]) == ["b", "a"]
