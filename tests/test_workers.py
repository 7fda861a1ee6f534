"""Worker processes of the data loader: full shared memory, killed workers, unguarded scripts."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from helpers.image_folders import constant_image, write_folder

from resflax import UserError
from resflax.data import load_dataset
from resflax.data.loader import stream_batches
from resflax.data.order import EvalOrder
from resflax.data.workers import WorkerLostError, check_shared_memory, worker_errors

UNGUARDED = """
from resflax.data import load_dataset
from resflax.data.loader import stream_batches
from resflax.data.order import EvalOrder

print("main module")
split = load_dataset("folder:data", image_size=8).train
batches = stream_batches(split, EvalOrder(2, len(split), slice(0, 2)), ("label",), num_workers=2)
print(sum(len(batch["label"]) for batch in batches))
"""

# Imported by each Python process at its start. /dev/shm is also used by tests that run meanwhile.
RECORD_SHARED_MEMORY = """
from multiprocessing import shared_memory

make_filename = shared_memory._make_filename

def recorded():
    name = make_filename()
    with open("names", "a") as file:
        file.write(name.lstrip("/") + "\\n")
    return name

shared_memory._make_filename = recorded
"""


@pytest.fixture
def folder(tmp_path):
    """A folder `data` with eight training images."""
    images = {
        f"{split}/{name}/{i}.png": constant_image(40 * i)
        for split in ("train", "test")
        for name in ("a", "b")
        for i in range(4)
    }
    write_folder(tmp_path / "data", images)
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (-7, "was ended by SIGBUS, /dev/shm is full: enlarge it .*--shm-size"),
        (-9, r"was killed \(SIGKILL\), probably by the system, which was short of memory: use few"),
        (-11, "was ended by SIGSEGV: the same command resumes"),
        (1, "ended with status 1, see its message above: data.num_workers=0 reads in threads"),
        (OSError(28, os.strerror(28)), "/dev/shm is full: enlarge it"),
        (MemoryError(), "a worker process ran out of memory: use fewer with data.num_workers"),
    ],
)
def test_lost_workers_are_explained_in_one_line(error, message):
    if isinstance(error, int):
        error = RuntimeError(f"Worker process was terminated unexpectedly with exit code {error}.")
    with pytest.raises(WorkerLostError, match=message) as e, worker_errors():
        raise error
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("error", [RuntimeError("other"), OSError(5, "other"), UserError("other")])
def test_other_errors_of_workers_are_unchanged(error):
    with pytest.raises(type(error), match="other") as e, worker_errors():
        raise error
    assert e.value is error


def test_shared_memory_must_hold_the_batches(monkeypatch):
    usage = namedtuple("usage", "free")(64_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    check_shared_memory(0, 10**9)
    check_shared_memory(8, 4_000_000)
    with pytest.raises(UserError, match="has 64 MB left, but the batches of 8 workers need 80 MB"):
        check_shared_memory(8, 5_000_000)


@pytest.mark.multiprocess
def test_killed_worker_is_a_one_line_error(folder):
    split = load_dataset(f"folder:{folder}", image_size=8).train
    order = EvalOrder(1, len(split) * 10, slice(0, 1))
    split.source = RepeatedSource(split.source, 10)
    batches = stream_batches(split, order, ("label",), num_workers=1)
    next(batches)
    [worker] = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGINT)  # ignored: a terminal sends it to all processes
    next(batches)
    assert worker.is_alive()
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerLostError, match=r"killed \(SIGKILL\)"):
        list(batches)


class RepeatedSource:
    """The examples of a source, several times."""

    def __init__(self, source, times):
        self.source, self.times, self.name = source, times, source.name

    def __len__(self):
        return len(self.source) * self.times

    def read(self, index, channels=0):
        return self.source.read(index % len(self.source), channels)


@pytest.mark.multiprocess
def test_script_without_a_main_guard_works(folder, tmp_path):
    (tmp_path / "script.py").write_text(UNGUARDED)
    (tmp_path / "sitecustomize.py").write_text(RECORD_SHARED_MEMORY)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "main module\n8\n"
    names = (tmp_path / "names").read_text().split()
    assert len(names) >= 4  # a batch of two labels each
    assert not [name for name in names if (Path("/dev/shm") / name).exists()]
