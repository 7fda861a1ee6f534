"""What XLA compiled, kept on disk, so that a second start is quick."""

from pathlib import Path
from typing import Any

import jax

from resflax.cache import cache_dir


def enable_compilation_cache() -> Path | None:
    """Turns JAX's persistent compilation cache on, in the user's cache folder.

    `$XDG_CACHE_HOME/resflax/xla`, or `~/.cache/resflax/xla`. A cache that is configured already
    (JAX_COMPILATION_CACHE_DIR, or `jax.config`) stays, and so does one that was turned off
    (JAX_ENABLE_COMPILATION_CACHE=false).

    Returns:
      The folder, or None where nothing was changed.
    """
    config: Any = jax.config
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return None
    folder = cache_dir() / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None  # a cache is a convenience: a home that cannot be written is no error
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder
