"""Worker processes of the data loader: how they start, which signals they ignore, how they end."""

import contextlib
import errno
import functools
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from multiprocessing import spawn
from pathlib import Path
from typing import Any

from resflax.errors import UserError, quantity

# Where POSIX shared memory is on Linux, through which workers return their batches.
SHARED_MEMORY = Path("/dev/shm")
# Batches that wait in shared memory, per worker.
BATCHES_PER_WORKER = 2
# Seconds that a worker keeps working after SIGTERM, while its trainer saves.
TERM_SECONDS = 15.0
FEWER = "use fewer with data.num_workers (0 for threads)"
MORE_SHARED_MEMORY = f"enlarge it (`docker run --shm-size=8g`), or {FEWER}"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRAIN_NAME = "grain-process-prefetch"


class WorkerLostError(UserError):
    """A worker process ended before its work was done; the message says why."""


def check_shared_memory(num_workers: int, batch_bytes: int) -> None:
    """Raises `UserError` if the batches of the workers do not fit into shared memory."""
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:  # not Linux
        return
    needed = num_workers * BATCHES_PER_WORKER * batch_bytes
    if num_workers and needed > free:
        raise UserError(
            f"{SHARED_MEMORY} has {free / 1e6:.3g} MB left, but the batches of"
            f" {quantity(num_workers, 'worker')} need {needed / 1e6:.3g} MB:"
            f" {MORE_SHARED_MEMORY}"
        )


def free_shared_memory(arrays: Iterable[Any]) -> None:
    """Removes the names of the arrays that are in shared memory; it is freed with its last array.

    Grain does so in a thread, when an array is deleted, which may be too late at exit.
    """
    for array in arrays:
        if getattr(array, "shm", None) is not None:
            array.shm.unlink()
            array._unlink_on_del = False


@contextlib.contextmanager
def worker_errors() -> Iterator[None]:
    """Turns what Grain raises when a worker process is lost into a `WorkerLostError`."""
    try:
        yield
    except UserError:
        raise
    except (RuntimeError, OSError, MemoryError) as e:
        status = re.search(r"Worker process was terminated.* exit code (-?\d+)", str(e))
        if status:
            raise WorkerLostError(_describe_end(int(status[1]))) from e
        if isinstance(e, MemoryError):
            raise WorkerLostError(f"a worker process ran out of memory: {FEWER}") from e
        if isinstance(e, OSError) and e.errno in DISK_FULL:
            raise WorkerLostError(f"{SHARED_MEMORY} is full: {MORE_SHARED_MEMORY}") from e
        raise


def _describe_end(status: int) -> str:
    """Returns why a process with this exit status, negative for a signal, has ended."""
    name = signal.Signals(-status).name if -status in set(signal.Signals) else str(status)
    if name == "SIGBUS":
        return (
            f"a worker process was ended by {name}, {SHARED_MEMORY} is full: {MORE_SHARED_MEMORY}"
        )
    if name == "SIGKILL":
        return (
            f"a worker process was killed ({name}), probably by the system, which was short of"
            f" memory: {FEWER}, or a smaller batch_size; the same command resumes"
        )
    if status < 0:
        return f"a worker process was ended by {name}: the same command resumes"
    return (
        f"a worker process ended with status {status}, see its message above:"
        " data.num_workers=0 reads in threads instead"
    )


def set_up_worker(parent: int, worker_index: int, num_workers: int) -> None:
    """Prepares a worker process, in it: signals, and the end of its parent.

    A terminal sends Ctrl-C to all processes of a group, and `timeout` SIGTERM: the worker ignores
    them, so that its trainer can finish the step.
    """
    del worker_index, num_workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit_later)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()


def _exit_later(number: int, frame: Any) -> None:
    del frame
    timer = threading.Timer(TERM_SECONDS, os._exit, [128 + number])
    timer.daemon = True
    timer.start()


def _exit_with_parent(parent: int) -> None:
    """Ends this process when its parent dies, even if killed; else it would wait forever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


@functools.cache
def isolate_workers() -> None:
    """Makes Grain's workers start without the main module of this process, and without signals.

    They do not need the module, since cloudpickle sends them its classes and functions. Imported
    again, a script without `if __name__ == "__main__":` would start to train in each worker.
    Signals are blocked until `set_up_worker`, which a worker inherits from the thread that starts
    it.
    """
    original = spawn.get_preparation_data

    def get_preparation_data(name: str) -> dict[str, Any]:
        data = original(name)
        if name.startswith(GRAIN_NAME):
            data.pop("init_main_from_name", None)
            data.pop("init_main_from_path", None)
            if threading.current_thread() is not threading.main_thread():
                signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        return data

    spawn.get_preparation_data = get_preparation_data
