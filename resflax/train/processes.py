"""Several processes as one run: how they find each other, and what they tell each other."""

import json
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from resflax.errors import UserError

# A process that is dead is missed after so many seconds, and the others end.
HEARTBEAT_SECONDS = 30


@dataclass(frozen=True)
class Processes:
    """What the command line says of them.

    Attributes:
      distributed: whether there are several.
      coordinator: host and port of process 0; "" to find it as JAX does, from the environment of
        SLURM, Open MPI, GKE or a TPU pod.
      count: how many there are; None to find it.
      number: which one this is, from 0; None to find it.
    """

    distributed: bool = False
    coordinator: str = ""
    count: int | None = None
    number: int | None = None

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


def is_first() -> bool:
    """Whether this is process 0, which alone writes and talks."""
    return jax.process_index() == 0


def gathered(value: list[str]) -> list[str]:
    """The lists of all processes, one after the other, each entry once; all call it together."""
    if jax.process_count() == 1:
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
