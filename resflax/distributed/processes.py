"""Several processes as one run: how they find each other, and what they tell each other."""

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

from resflax.distributed.open_mpi import open_mpi
from resflax.errors import UserError

# A process that is dead is missed after so many seconds, and the others end.
HEARTBEAT_SECONDS = 30
# A process that failed has so long to end as it should.
EXIT_GRACE_SECONDS = 3.0


@dataclass(frozen=True)
class DistributedConfig:
    """What the command line says of them.

    Attributes:
      distributed: whether there are several.
      coordinator: host and port of process 0; "" to find it as JAX does, from the environment of
        SLURM, Open MPI, GKE or a TPU pod. Under `mpirun` it may be said alone.
      count: how many there are; None to find it.
      number: which one this is, from 0; None to find it.
    """

    distributed: bool = False
    coordinator: str = ""
    count: int | None = None
    number: int | None = None

    def found(self) -> "DistributedConfig":
        """With what Open MPI tells and JAX does not find.

        Raises:
          UserError: if that does not tell where process 0 is.
        """
        told = open_mpi() if self.distributed else None
        if told is None or self.count is not None or self.number is not None:
            return self
        if told.known and not self.coordinator:
            return self
        coordinator = self.coordinator or told.coordinator
        if not coordinator:
            raise UserError(
                "Open MPI 5 does not tell which machine process 0 is on: expected"
                " --coordinator=HOST:PORT"
            )
        return replace(self, coordinator=coordinator, count=told.size, number=told.rank)

    def check(self) -> None:
        """Raises `UserError` if one thing is said without the others."""
        said = [bool(self.coordinator), self.count is not None, self.number is not None]
        if any(said) and not self.distributed:
            raise UserError("--coordinator, --num_processes and --process_id need --distributed")
        if any(said) and not all(said):
            raise UserError(
                "expected all of --coordinator=HOST:PORT, --num_processes and --process_id, or none"
                " of them, to find them as JAX does"
            )
        if self.count is not None and self.number is not None:
            if self.count < 1:
                raise UserError(f"--num_processes is {self.count}: expected 1 or more")
            if not 0 <= self.number < self.count:
                last = self.count - 1
                raise UserError(f"--process_id is {self.number}: expected from 0 to {last}")

    def join(self) -> None:
        """Joins the others; before anything is asked of JAX.

        Raises:
          UserError: if they cannot be found.
        """
        if not self.distributed:
            return
        try:
            jax.distributed.initialize(
                self.coordinator or None,
                self.count,
                self.number,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            )
        except (ValueError, RuntimeError) as e:
            raise UserError(
                f"the other processes cannot be joined: {str(e).splitlines()[0]}: expected"
                " --coordinator=HOST:PORT --num_processes=N --process_id=I, or an environment of"
                " SLURM, Open MPI, GKE or a TPU pod"
            ) from e


def is_main_process() -> bool:
    """Whether this is process 0, which alone writes and talks."""
    return jax.process_index() == 0


def _alone() -> bool:
    return jax.process_count() == 1


def broadcast_json(value: Any) -> Any:
    """What process 0 has, as JSON tells it; all call it together."""
    if _alone():
        return value
    text = json.dumps(value if is_main_process() else None).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.zeros(size, np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)[:size]
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8)))


def broadcast_tree(tree: Any) -> Any:
    """The arrays of process 0, bit for bit, where the others have some of the same shapes."""
    if _alone():
        return tree

    def share(leaf: Any) -> np.ndarray:
        # As bytes: they are shared by a sum with zeros, which would lose the sign of -0.
        array = np.ascontiguousarray(leaf)
        raw = array.reshape(-1).view(np.uint8)
        told = np.asarray(multihost_utils.broadcast_one_to_all(raw), np.uint8)
        return told.view(array.dtype).reshape(np.shape(leaf))  # `array` has an axis at least

    return jax.tree.map(share, tree)


def all_gather_strings(value: list[str]) -> list[str]:
    """The lists of all processes, one after the other, each entry once; all call it together."""
    if _alone():
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes: Any = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(text)] = text
    rows: Any = multihost_utils.process_allgather(padded)
    lists = [
        json.loads(bytes(row[:size]).decode())
        for row, size in zip(np.asarray(rows, np.uint8), sizes.tolist(), strict=True)
    ]
    return list(dict.fromkeys(entry for entries in lists for entry in entries))


def reached_preemption(step: int, asked: bool) -> bool:
    """Whether the run is to end after this step; all processes say the same.

    Of several, the one that gets SIGTERM tells the others, and JAX finds a step that none has
    passed (`reached_preemption_sync_point`).
    """
    return asked if _alone() else multihost_utils.reached_preemption_sync_point(step)


@contextlib.contextmanager
def lost_process_as_user_error() -> Iterator[None]:
    """Turns what JAX raises when another process is gone into one line.

    Raises:
      UserError: instead of JAX's own error, if there are other processes.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as e:
        if _alone():
            raise
        reason = " ".join(str(e).split())[:160]
        raise UserError(
            f"process {jax.process_index()} of {jax.process_count()} lost another one ({reason}):"
            " start all of them again, and they go on from the last checkpoint"
        ) from e


def exit_process(status: int) -> NoReturn:
    """Ends this process; if it failed, without waiting for what may not come.

    An orderly end waits for the other processes of a run, and for threads of Orbax's, which wait
    for minutes where the disk would not let them make a folder.
    """
    if status:
        sys.stdout.flush()
        sys.stderr.flush()
        if not _alone():
            os._exit(status)
        timer = threading.Timer(EXIT_GRACE_SECONDS, os._exit, [status])
        timer.daemon = True
        timer.start()
    sys.exit(status)
