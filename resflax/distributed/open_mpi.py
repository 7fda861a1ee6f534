"""Environment variables of Open MPI's `mpirun`.

JAX detects version 4 by a variable that version 5 no longer sets.
"""

import os
import zlib
from collections.abc import Mapping
from typing import NamedTuple

# Ports that systems rarely assign automatically; JAX uses one of them under version 4.
FIRST_PORT, PORTS = 61440, 4096


class OpenMpiEnv(NamedTuple):
    """Values that `mpirun` sets in the environment of a process.

    Attributes:
      size: number of processes.
      rank: index of this process, from 0.
      coordinator: host and port of process 0; "" if unknown.
      detected_by_jax: whether `jax.distributed.initialize` finds all of this without arguments.
    """

    size: int
    rank: int
    coordinator: str
    detected_by_jax: bool


def read_open_mpi(env: Mapping[str, str] = os.environ) -> OpenMpiEnv | None:
    """Reads Open MPI's variables; None if `mpirun` did not start this process.

    Version 5 does not say on which host process 0 runs; that is known if all share one machine.

    >>> job = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}
    >>> read_open_mpi(job)
    OpenMpiEnv(size=2, rank=1, coordinator='', detected_by_jax=False)
    >>> local = {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "prterun-a-77@1"}
    >>> read_open_mpi(job | local).coordinator
    '127.0.0.1:61742'
    """
    if "OMPI_COMM_WORLD_SIZE" not in env or "OMPI_COMM_WORLD_RANK" not in env:
        return None
    size, rank = env["OMPI_COMM_WORLD_SIZE"], env["OMPI_COMM_WORLD_RANK"]
    job = env.get("PMIX_NAMESPACE", "")
    one_machine = env.get("OMPI_COMM_WORLD_LOCAL_SIZE") == size
    port = FIRST_PORT + zlib.crc32(job.encode()) % PORTS  # concurrent jobs need different ports
    coordinator = f"127.0.0.1:{port}" if job and one_machine else ""
    return OpenMpiEnv(int(size), int(rank), coordinator, "OMPI_MCA_orte_hnp_uri" in env)
