"""Several processes on this machine train as one process would."""

import dataclasses
import json
import re
import shutil
import sys
from typing import NamedTuple

import jax
import numpy as np
import pytest
from helpers.one_process import PIPELINES, STARTS, STEPS, TREE
from helpers.processes import free_port, run_all
from helpers.records import read_records
from PIL import Image

from resflax import UserError
from resflax.distributed import DistributedConfig
from resflax.distributed.processes import (
    all_gather_strings,
    broadcast_json,
    broadcast_tree,
    is_main_process,
    reached_preemption,
)
from resflax.run.checkpoint import restore_latest
from resflax.train import build, default_config

multiprocess = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def batches_folder(tmp_path_factory):
    """The folder with the batches of one process, and of two, with the same four devices."""
    folder = tmp_path_factory.mktemp("processes")
    rng = np.random.default_rng(1)
    for split in ("train", "test"):
        for name in "ab":
            (folder / "images" / split / name).mkdir(parents=True)
            for i in range(13):
                shape = (rng.integers(9, 20), rng.integers(9, 20), 3)
                image = Image.fromarray(rng.integers(0, 256, shape, np.uint8))
                image.save(folder / "images" / split / name / f"{i}.png")
    script = [sys.executable, "-m", "helpers.one_process"]
    run_all([[*script, "0", "1", "0", str(folder)]], devices=4)
    port = str(free_port())
    run_all([[*script, port, "2", str(i), str(folder)] for i in range(2)], devices=2)
    return folder


@multiprocess
@pytest.mark.slow
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("parallel", ["pmap", "mesh"])
def test_two_processes_get_the_batches_of_one(batches_folder, parallel, start):
    """They are bit-identical with every input pipeline, from the first step and from step 37."""

    def load(name):
        with np.load(batches_folder / f"{parallel}-{name}.npz") as file:
            return {key: file[key] for key in ("image", "label", "index")}

    single = {name: load(f"{name}-{start}-1-0") for name in PIPELINES}
    for name, batches in single.items():
        parts = [load(f"{name}-{start}-2-{i}") for i in range(2)]
        for key, value in batches.items():
            assert value.shape[:2] == (STEPS, 16)
            rows = [part[key] for part in parts]
            assert np.concatenate(rows, 1).tobytes() == value.tobytes()
    for one, other in (("memory-host-0", "memory-device-0"), ("stream-host-0", "stream-host-2")):
        for key, value in single[one].items():
            assert value.tobytes() == single[other][key].tobytes()


@multiprocess
@pytest.mark.slow
def test_broadcast_tree_keeps_every_bit(batches_folder):
    with np.load(batches_folder / "broadcast-1.npz") as received:
        assert set(received) == set(TREE)
        for name, value in TREE.items():
            assert received[name].dtype == value.dtype
            assert received[name].shape == value.shape
            assert received[name].tobytes() == value.tobytes()


class Layout(NamedTuple):
    """Devices and processes of a run."""

    parallel: str
    devices: int
    processes: int = 1
    fsdp: int = 1
    mpirun: bool = False


class Trained(NamedTuple):
    """A run: what each process printed, its results, training losses and flat parameters."""

    outputs: list
    results: dict
    losses: np.ndarray
    params: np.ndarray


def train(folder, layout):
    """Trains with `train.py` on a layout."""
    workdir = folder / "run"
    command = [
        sys.executable, "train.py", f"--workdir={workdir}", "--config.model=cifar_resnet8",
        "--config.epochs=1", "--config.log_every_steps=1",
        f"--config.parallel={layout.parallel}", f"--config.mesh.fsdp={layout.fsdp}",
    ]  # fmt: skip
    commands, env = [command], {"XDG_CACHE_HOME": str(folder / "cache")}
    if layout.mpirun:
        mpirun = ["mpirun", "-n", str(layout.processes), "--oversubscribe", "--bind-to", "none"]
        commands = [[*mpirun, *command, "--distributed"]]
        env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    elif layout.processes > 1:
        flags = ["--distributed", f"--coordinator=127.0.0.1:{free_port()}"]
        flags += [f"--num_processes={layout.processes}"]
        commands = [[*command, *flags, f"--process_id={i}"] for i in range(layout.processes)]
    outputs = run_all(commands, devices=layout.devices // layout.processes, **env)
    records = read_records(workdir)
    losses = np.array([r["loss"] for r in records if r["split"] == "train"])
    results = json.loads((workdir / "results.json").read_text())
    return Trained(outputs, results, losses, saved_params(workdir))


def saved_params(workdir):
    """Returns the parameters of the last checkpoint as one float64 vector."""
    config = default_config()
    config.update(json.loads((workdir / "config.json").read_text()))
    initial = build(config).init()
    template = {"state": initial, "eval_batch_stats": initial.batch_stats}
    params = restore_latest(workdir / "checkpoints", template).tree["state"].params
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)], dtype=np.float64)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    return train(tmp_path_factory.mktemp("one"), Layout("pmap", 1))


needs_mpirun = pytest.mark.skipif(not shutil.which("mpirun"), reason="no mpirun")


@multiprocess
@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        Layout("pmap", 2, 2),
        Layout("mesh", 2, 2),
        Layout("shard_map", 2, 2),
        Layout("pmap", 4, 4),
        Layout("mesh", 4, 4, fsdp=2),
        pytest.param(Layout("pmap", 2, 2, mpirun=True), marks=needs_mpirun),
        pytest.param(Layout("mesh", 2, 2, mpirun=True), marks=needs_mpirun),
    ],
)
def test_processes_train_as_one_and_only_the_first_writes(tmp_path, one_process, layout):
    run = train(tmp_path, layout)
    assert np.max(np.abs(run.losses - one_process.losses) / one_process.losses) < 1e-5
    difference = np.linalg.norm(run.params - one_process.params)
    assert difference / np.linalg.norm(one_process.params) < 1e-4
    assert len(run.outputs) == (1 if layout.mpirun else layout.processes)
    assert "test accuracy" in run.outputs[0]
    assert "".join(run.outputs).count("; saved in ") == 1
    assert [path.name for path in tmp_path.glob("*/results.json")] == ["results.json"]
    assert run.results["process_count"] == run.results["device_count"] == layout.processes
    assert run.results["test_examples"] == 360


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (DistributedConfig(False, "host:1", 2, 0), "need --distributed"),
        (DistributedConfig(True, "host:1", 2), "expected all of --coordinator=HOST:PORT"),
        (DistributedConfig(True, "host:1", 0, 0), "--num_processes is 0: expected 1 or more"),
        (DistributedConfig(True, "host:1", 2, 2), "--process_id is 2: expected 0 to 1"),
    ],
)
def test_incomplete_arguments_raise_user_errors(config, problem):
    with pytest.raises(UserError, match=re.escape(problem)):
        config.validate()


def set_mpi_variables(monkeypatch, **changes):
    for name, value in {"SIZE": "2", "RANK": "1", "LOCAL_SIZE": "2", **changes}.items():
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", value)


def test_open_mpi_5_processes_on_one_machine_need_no_flags(monkeypatch):
    monkeypatch.setenv("PMIX_NAMESPACE", "prterun-host-77@1")
    set_mpi_variables(monkeypatch)
    second = DistributedConfig(True).from_env()
    set_mpi_variables(monkeypatch, RANK="0")
    first = DistributedConfig(True).from_env()
    assert (second.num_processes, second.process_id) == (2, 1)
    assert first == dataclasses.replace(second, process_id=0)
    assert re.fullmatch(r"127\.0\.0\.1:6[1-5]\d{3}", first.coordinator)
    # Without --distributed each process is a run by itself.
    assert DistributedConfig().from_env() == DistributedConfig()


def test_open_mpi_5_on_several_machines_needs_the_coordinator(monkeypatch):
    set_mpi_variables(monkeypatch, LOCAL_SIZE="1")
    with_host = DistributedConfig(True, "host:1")
    assert with_host.from_env() == DistributedConfig(True, "host:1", 2, 1)
    with pytest.raises(UserError, match="does not report the host of process 0"):
        DistributedConfig(True).from_env()
    complete = DistributedConfig(True, "host:1", 3, 2)
    assert complete.from_env() == complete
    monkeypatch.setenv("OMPI_MCA_orte_hnp_uri", "1.0;tcp://10.0.0.1:99")  # version 4
    assert DistributedConfig(True).from_env() == DistributedConfig(True)


def test_single_process_exchange_returns_its_argument():
    assert is_main_process()
    assert all_gather_strings(["b", "a"]) == ["b", "a"]
    assert broadcast_json({"a": [1]}) == {"a": [1]}
    assert broadcast_tree(TREE) is TREE
    assert [reached_preemption(3, received) for received in (False, True)] == [False, True]
