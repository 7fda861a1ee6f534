"""What Open MPI tells its processes; JAX finds version 4 by a variable that 5 no longer sets."""

import os
import zlib
from collections.abc import Mapping
from typing import NamedTuple

# Ports of which a system hands out few by itself; JAX takes one of them under version 4.
FIRST_PORT, PORTS = 61440, 4096


class Told(NamedTuple):
    """What `mpirun` tells a process.

    Attributes:
      size: how many there are.
      rank: which one this is, from 0.
      coordinator: host and port for process 0; "" where that is not told.
      known: whether JAX finds all of this by itself.
    """

    size: int
    rank: int
    coordinator: str
    known: bool


def open_mpi(env: Mapping[str, str] = os.environ) -> Told | None:
    """What `mpirun` tells this process; None if it did not start it.

    Version 5 does not tell where process 0 is: that is known where all share one machine.

    >>> job = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}
    >>> open_mpi(job)
    Told(size=2, rank=1, coordinator='', known=False)
    >>> open_mpi(job | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "prterun-a-77@1"})
    Told(size=2, rank=1, coordinator='127.0.0.1:61742', known=False)
    """
    if "OMPI_COMM_WORLD_SIZE" not in env or "OMPI_COMM_WORLD_RANK" not in env:
        return None
    size, rank = env["OMPI_COMM_WORLD_SIZE"], env["OMPI_COMM_WORLD_RANK"]
    job, near = env.get("PMIX_NAMESPACE", ""), env.get("OMPI_COMM_WORLD_LOCAL_SIZE") == size
    port = FIRST_PORT + zlib.crc32(job.encode()) % PORTS  # two jobs should not share one
    coordinator = f"127.0.0.1:{port}" if job and near else ""
    return Told(int(size), int(rank), coordinator, "OMPI_MCA_orte_hnp_uri" in env)
