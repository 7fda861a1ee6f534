"""Process-wide settings: the memory allocator, the compilation cache, the cache directory.

Nothing here runs on import: `train.py`, the command line and the benchmarks call it.
"""

import contextlib
import ctypes
import os
import stat
import sys
import warnings
from pathlib import Path
from typing import Any

from resflax.files import UNKNOWN_HOME

# Bound of the compilation cache, when a command starts.
MAX_CACHE_BYTES = 4 * 2**30
# Parameters of glibc's `mallopt` (malloc.h).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def tune_malloc() -> bool:
    """Makes glibc keep freed memory for the next step instead of returning it to the system.

    Returning it costs one page fault per 4 KiB of every temporary of every step, a fifth of a
    training step on a CPU. In exchange, the process keeps its peak memory. Call this function
    before JAX starts its threads. The environment variable RESFLAX_TUNE_MALLOC=0 disables it, and
    so do glibc's variables (`MALLOC_MMAP_MAX_` and the like).

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


# JAX computes on the CPU, and the compilers of accelerators look for no hardware: no metadata
# server of a TPU, no driver of a GPU, no lock on libtpu, no log files.
TOPOLOGY_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def compile_for_topologies() -> None:
    """Prepares a process that compiles for accelerators that are not there; before JAX is imported.

    The topology's own name decides which accelerator that is.
    """
    os.environ.update(TOPOLOGY_ENVIRONMENT)


def home_dir() -> Path | None:
    """Returns the home directory; None without HOME for a user that the system does not know."""
    home = os.path.expanduser("~")
    return None if home.startswith("~") else Path(home)


def set_unknown_home() -> None:
    """Sets HOME, if it is unknown, to a directory that does not exist.

    Libraries then make do without one, as for a user who cannot write it, instead of writing into
    a directory called `~`.
    """
    if home_dir() is None:
        os.environ["HOME"] = UNKNOWN_HOME


def cache_dir() -> Path | None:
    """Returns the user's cache directory, `$XDG_CACHE_HOME/resflax` or `~/.cache/resflax`.

    The directory may not exist yet. None without a home directory.
    """
    given, home = os.environ.get("XDG_CACHE_HOME", ""), home_dir()
    if os.path.isabs(given):  # the specification of XDG ignores relative ones
        return Path(given, "resflax")
    return home and home / ".cache" / "resflax"


def enable_compilation_cache() -> Path | None:
    """Turns on JAX's persistent compilation cache, in `cache_dir() / "xla"`.

    Its least recently used programs are deleted first, down to `MAX_CACHE_BYTES`. A cache that is
    already configured (JAX_COMPILATION_CACHE_DIR, or `jax.config`) or turned off
    (JAX_ENABLE_COMPILATION_CACHE=false) is left as it is. In any cache, a program that cannot be
    read or written is compiled without a warning.

    Returns:
      The cache's directory, or None if nothing was changed.
    """
    import jax

    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    config: Any = jax.config
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return None
    directory = cache_dir()
    if directory is None:
        return None
    path = directory / "xla"
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            return None
        _prune(path, MAX_CACHE_BYTES)
    except OSError:
        return None  # the cache is optional: a read-only home directory is not an error
    config.update("jax_compilation_cache_dir", str(path))
    # Otherwise no program with a rule of `kernels/partition.py` is found again, because its key has
    # the address of a Python object. What the rule computes is in the key as well, in a name.
    config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)
    return path


def _prune(path: Path, max_bytes: int) -> None:
    """Deletes the least recently used files in a directory, so that the others fit.

    JAX has `jax_compilation_cache_max_size`, but a process that is killed between the two files of
    a program would keep all later ones from being written.
    """
    used = []
    for entry in os.scandir(path):
        with contextlib.suppress(FileNotFoundError):  # another process deletes too
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISREG(status.st_mode):
                used.append((max(status.st_atime, status.st_mtime), status.st_size, entry.path))
    total = 0
    for _, size, name in sorted(used, reverse=True):
        total += size
        if total > max_bytes:
            Path(name).unlink(missing_ok=True)
