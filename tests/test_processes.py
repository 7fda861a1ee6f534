"""Several processes on this machine, over loopback: the run that one process would make."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resflax import UserError
from resflax.train.processes import Processes, gathered

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


@pytest.mark.parametrize("parallel", ENGINES)
def test_two_processes_train_as_one_and_the_first_alone_writes(tmp_path, parallel):
    keys = ["--config.model=cifar_resnet8", "--config.epochs=1", "--config.log_every_steps=1"]
    command = [sys.executable, "train.py", *keys, f"--config.parallel={parallel}"]
    run_all([[*command, f"--workdir={tmp_path / 'one'}"]], devices=2)
    rest = ["--distributed", f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"]
    both = [[*command, *rest, f"--process_id={i}", f"--workdir={tmp_path / 'two'}"] for i in (0, 1)]
    first, second = run_all(both, devices=1)
    assert "test accuracy" in first
    assert "accuracy" not in second
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert [line["step"] for line in one] == [line["step"] for line in two]
    np.testing.assert_allclose(
        [line["loss"] for line in two], [line["loss"] for line in one], rtol=1e-5
    )
    results = json.loads((tmp_path / "two" / "results.json").read_text())
    assert results["process_count"] == results["device_count"] == 2
    assert results["test_examples"] == 360


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (Processes(False, "host:1", 2, 0), "need --distributed"),
        (Processes(True, "host:1", 2), "expected all of --coordinator=HOST:PORT"),
        (Processes(True, "host:1", 0, 0), "--num_processes is 0: expected 1 or more"),
        (Processes(True, "host:1", 2, 2), "--process_id is 2: expected from 0 to 1"),
    ],
)
def test_half_said_is_refused(said, problem):
    with pytest.raises(UserError, match=re.escape(problem)):
        said.check()


def test_alone_a_list_is_itself():
    assert gathered(["b", "a"]) == ["b", "a"]
