"""How this process takes memory from the operating system."""

import ctypes
import os
import sys

# glibc's names for what `mallopt` sets (malloc.h).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def tune_malloc() -> bool:
    """Lets glibc keep what large arrays leave, for the next step, instead of giving it back.

    Giving back costs a page fault for every 4 KiB of every temporary of every step, a fifth of a
    training step on a CPU. The price: the process stays as large as it once was. Called when
    resflax is imported, before JAX starts its threads. RESFLAX_KEEP_MEMORY=0 in the environment
    leaves glibc as it is, as do settings of glibc's own (MALLOC_MMAP_MAX_ and the like).

    Returns:
      Whether it was done; False as well where there is no glibc.
    """
    wanted = os.environ.get("RESFLAX_KEEP_MEMORY", "1") != "0"
    own = any(name.startswith("MALLOC_") for name in os.environ)
    if not wanted or own or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = (
        (_M_MMAP_MAX, 0),
        # A second arena takes what is larger than 64 MiB from the system all the same.
        (_M_ARENA_MAX, 1),
        (_M_TRIM_THRESHOLD, -1),  # never: 2 GiB is soon left at the top by a large network
        (_M_TOP_PAD, 2**27),
    )
    return all([mallopt(name, value) == 1 for name, value in settings])
