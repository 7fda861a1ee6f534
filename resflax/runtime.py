"""Process-wide settings: the memory allocator, the compilation cache, the cache directory.

Nothing here runs on import: `train.py`, the command line and the benchmarks call it.
"""

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

# Parameters of glibc's `mallopt` (malloc.h).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def tune_malloc() -> bool:
    """Makes glibc keep freed memory for the next step instead of returning it to the system.

    Returning it costs one page fault per 4 KiB of every temporary of every step, a fifth of a
    training step on a CPU. In exchange, the process keeps its peak memory. Call this function
    before JAX starts its threads. The environment variable RESFLAX_TUNE_MALLOC=0 disables it, and
    so do glibc's variables (MALLOC_MMAP_MAX_ and the like).

    Returns:
      Whether the allocator was changed; False on systems without glibc.
    """
    disabled = os.environ.get("RESFLAX_TUNE_MALLOC", "1") == "0"
    user_settings = any(name.startswith("MALLOC_") for name in os.environ)
    if disabled or user_settings or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = (
        (_M_MMAP_MAX, 0),
        # A second arena still allocates blocks over 64 MiB with mmap.
        (_M_ARENA_MAX, 1),
        (_M_TRIM_THRESHOLD, -1),  # never: large networks free 2 GiB at the top of the heap
        (_M_TOP_PAD, 2**27),
    )
    return all([mallopt(name, value) == 1 for name, value in settings])


def cache_dir() -> Path:
    """Returns the user's cache directory, `$XDG_CACHE_HOME/resflax` or `~/.cache/resflax`.

    The directory may not exist yet.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "resflax")


def enable_compilation_cache() -> Path | None:
    """Turns on JAX's persistent compilation cache, in `cache_dir() / "xla"`.

    A cache that is already configured (JAX_COMPILATION_CACHE_DIR, or `jax.config`) or turned off
    (JAX_ENABLE_COMPILATION_CACHE=false) is left as it is.

    Returns:
      The cache's directory, or None if nothing was changed.
    """
    import jax

    config: Any = jax.config
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return None
    path = cache_dir() / "xla"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None  # the cache is optional: a read-only home directory is not an error
    config.update("jax_compilation_cache_dir", str(path))
    return path
