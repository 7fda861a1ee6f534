"""How files are written, and put out of the way."""

import os
from pathlib import Path


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all: whoever reads it never sees a part.

    Not after the power failed either: a name must not be on disk before what it names.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with open(part, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)


def quarantine(path: Path, folder: Path) -> Path:
    """Moves a file or folder into `folder`; where it lies now, under a name that was free."""
    folder.mkdir(exist_ok=True)
    place, n = folder / path.name, 1
    while place.exists():
        place, n = folder / f"{path.name}-{n}", n + 1
    return path.rename(place)
