"""Where this library keeps what can be made again."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/resflax`, or `~/.cache/resflax`; not made yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "resflax")
