"""Several processes as one run: initialization and exchange of host data."""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from resflax.distributed.open_mpi import read_open_mpi
from resflax.errors import UserError

# Time without a heartbeat after which a process counts as dead, and the others exit.
HEARTBEAT_SECONDS = 30
# Time for an orderly exit of a process that failed.
EXIT_GRACE_SECONDS = 3.0


@dataclass(frozen=True)
class DistributedConfig:
    """Arguments of `jax.distributed.initialize`, as given on the command line.

    Attributes:
      distributed: whether the run has several processes.
      coordinator: host and port of process 0; "" to let JAX detect it from the environment of
        SLURM, Open MPI, GKE or a TPU pod. Under `mpirun` it may be given alone.
      num_processes: number of processes; None to detect it.
      process_id: index of this process, from 0; None to detect it.
    """

    distributed: bool = False
    coordinator: str = ""
    num_processes: int | None = None
    process_id: int | None = None

    def from_env(self) -> "DistributedConfig":
        """Returns a copy with the values of Open MPI that JAX does not detect.

        Raises:
          UserError: if they do not include the host of process 0.
        """
        mpi = read_open_mpi() if self.distributed else None
        if mpi is None or self.num_processes is not None or self.process_id is not None:
            return self
        if mpi.detected_by_jax and not self.coordinator:
            return self
        coordinator = self.coordinator or mpi.coordinator
        if not coordinator:
            raise UserError(
                "Open MPI 5 does not report the host of process 0: expected --coordinator=HOST:PORT"
            )
        return replace(self, coordinator=coordinator, num_processes=mpi.size, process_id=mpi.rank)

    def validate(self) -> None:
        """Raises `UserError` if only some of the values are given, or one is out of range."""
        given = [
            bool(self.coordinator), self.num_processes is not None, self.process_id is not None
        ]  # fmt: skip
        if any(given) and not self.distributed:
            raise UserError("--coordinator, --num_processes and --process_id need --distributed")
        if any(given) and not all(given):
            raise UserError(
                "expected all of --coordinator=HOST:PORT, --num_processes and --process_id, or none"
                " of them to detect them"
            )
        if self.num_processes is not None and self.process_id is not None:
            if self.num_processes < 1:
                raise UserError(f"--num_processes is {self.num_processes}: expected 1 or more")
            if not 0 <= self.process_id < self.num_processes:
                last = self.num_processes - 1
                raise UserError(f"--process_id is {self.process_id}: expected 0 to {last}")

    def initialize(self) -> None:
        """Connects to the other processes; call it before any other use of JAX.

        Raises:
          UserError: if they cannot be reached.
        """
        if not self.distributed:
            return
        try:
            jax.distributed.initialize(
                self.coordinator or None,
                self.num_processes,
                self.process_id,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            )
        except (ValueError, RuntimeError) as e:
            raise UserError(
                f"cannot connect to the other processes: {str(e).splitlines()[0]}: expected"
                " --coordinator=HOST:PORT --num_processes=N --process_id=I, or the environment of"
                " SLURM, Open MPI, GKE or a TPU pod"
            ) from e


def is_main_process() -> bool:
    """Returns whether this is process 0, the only one that writes files and prints."""
    return jax.process_index() == 0


def _single_process() -> bool:
    return jax.process_count() == 1


def broadcast_json(value: Any) -> Any:
    """Returns process 0's value, which must be JSON; all processes must call it."""
    if _single_process():
        return value
    text = json.dumps(value if is_main_process() else None).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.zeros(size, np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)[:size]
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8)))


def broadcast_tree(tree: Any) -> Any:
    """Returns process 0's arrays, bit for bit; the others pass arrays of the same shapes."""
    if _single_process():
        return tree

    def broadcast(leaf: Any) -> np.ndarray:
        # As bytes: JAX broadcasts by adding zeros, which would lose the sign of -0.
        array = np.ascontiguousarray(leaf)
        raw = array.reshape(-1).view(np.uint8)
        received = np.asarray(multihost_utils.broadcast_one_to_all(raw), np.uint8)
        return received.view(array.dtype).reshape(np.shape(leaf))  # `array` has one axis at least

    return jax.tree.map(broadcast, tree)


def all_gather_rows(tree: Any) -> Any:
    """Returns the arrays of all processes, bit for bit, concatenated along the first axis.

    All processes must call it, with arrays of the same shapes and dtypes.
    """
    if _single_process():
        return tree

    def gather(leaf: Any) -> np.ndarray:
        # As bytes: JAX would round 64-bit numbers to 32 bits.
        array = np.ascontiguousarray(leaf)
        raw: Any = multihost_utils.process_allgather(array.reshape(-1).view(np.uint8))
        rows = [np.asarray(row, np.uint8).view(array.dtype).reshape(array.shape) for row in raw]
        return np.concatenate(rows)

    return jax.tree.map(gather, tree)


def all_gather_strings(strings: list[str]) -> list[str]:
    """Returns the strings of all processes, without duplicates; all processes must call it."""
    if _single_process():
        return strings
    text = np.frombuffer(json.dumps(strings).encode(), np.uint8)
    sizes: Any = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(text)] = text
    rows: Any = multihost_utils.process_allgather(padded)
    lists = [
        json.loads(bytes(row[:size]).decode())
        for row, size in zip(np.asarray(rows, np.uint8), sizes.tolist(), strict=True)
    ]
    return list(dict.fromkeys(entry for entries in lists for entry in entries))


def reached_preemption(step: int, interrupted: bool) -> bool:
    """Returns whether the run must stop after this step, the same for all processes.

    With several processes, JAX forwards the SIGTERM of one and finds a step that none has passed
    yet (`reached_preemption_sync_point`).
    """
    if _single_process():
        return interrupted
    return multihost_utils.reached_preemption_sync_point(step)


@contextlib.contextmanager
def lost_process_as_user_error() -> Iterator[None]:
    """Turns JAX's error about a lost process into a `UserError` of one line."""
    try:
        yield
    except jax.errors.JaxRuntimeError as e:
        if _single_process():
            raise
        reason = " ".join(str(e).split())[:160]
        raise UserError(
            f"process {jax.process_index()} of {jax.process_count()} lost another one ({reason}):"
            " start all of them again to resume from the last checkpoint"
        ) from e


def exit_process(status: int) -> NoReturn:
    """Exits; after a failure, without waiting for the other processes or for library threads.

    An orderly exit waits for the other processes, and for threads of Orbax, which can wait for
    minutes for a directory that cannot be created.
    """
    if status:
        sys.stdout.flush()
        sys.stderr.flush()
        if not _single_process():
            os._exit(status)
        timer = threading.Timer(EXIT_GRACE_SECONDS, os._exit, [status])
        timer.daemon = True
        timer.start()
    sys.exit(status)
