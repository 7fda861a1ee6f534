"""Memory of the process and of its devices."""

import os
from pathlib import Path

import jax

MIB = 2**20


def memory_use() -> dict[str, float]:
    """Returns the memory in use, in MiB; without what the platform does not report.

    Returns:
      "host_memory_mib", the resident memory of this process without its workers (Linux), and
      "device_memory_mib", the largest memory that one of its devices has used up to now, which a
      CPU does not report.
    """
    memory: dict[str, float] = {}
    statm = Path("/proc/self/statm")
    if statm.exists():
        pages = int(statm.read_text().split()[1])
        memory["host_memory_mib"] = round(pages * os.sysconf("SC_PAGE_SIZE") / MIB, 1)
    statistics = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [values["peak_bytes_in_use"] for values in statistics if "peak_bytes_in_use" in values]
    return memory | ({"device_memory_mib": round(max(peaks) / MIB, 1)} if peaks else {})
