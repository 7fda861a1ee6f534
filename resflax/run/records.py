"""`metrics.jsonl`: what a run tells, a line at a time, and whether it is still what was told."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from resflax.files import quarantine, write_atomic

# What every line has, and a picture needs.
NUMBERS = ("step", "epoch", "loss", "accuracy")


class Records:
    """Lines that are on disk as soon as they are added.

    Attributes:
      path: of the file.
      count: of the lines.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.count, self._sum = path, 0, hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of all lines together."""
        return self._sum.hexdigest()

    def _take(self, lines: list[bytes]) -> None:
        self.count, self._sum = len(lines), hashlib.sha256(b"".join(lines))

    def add(self, record: dict[str, Any]) -> None:
        """Adds a line."""
        line = (json.dumps(record) + "\n").encode()
        with open(self.path, "ab") as file:
            file.write(line)
        self.count += 1
        self._sum.update(line)

    def all(self) -> list[dict[str, Any]]:
        """The lines."""
        return [json.loads(line) for line in self.path.read_bytes().splitlines()]

    def keep(self, count: int, sha256: str, step: int) -> str:
        """Leaves the first lines: those after them will be made again.

        If they are not what they were, the file is put aside into `damaged`, and those of its lines
        stay that can be read and are of no later step.

        Args:
          count: of the lines, when a checkpoint was made.
          sha256: of those lines.
          step: of the checkpoint.

        Returns:
          "", or what is wrong, for a warning.
        """
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        self._take(lines[:count])
        if (self.count, self.sha256) == (count, sha256):
            if len(lines) > count:
                write_atomic(self.path, b"".join(lines[:count]))
            return ""
        kept = [line for line in lines if _step(line) <= step]
        lies = ""
        if self.path.exists():
            lies = f"; it lies in {quarantine(self.path, self.path.parent / 'damaged')}"
        write_atomic(self.path, b"".join(kept))
        self._take(kept)
        return (
            f"{self.path.name} is not what it was at step {step}: {len(kept)} of its {count} lines"
            f" can be read{lies}"
        )


def _step(line: bytes) -> float:
    """The step of a line; infinite if it cannot be read."""
    try:
        record = json.loads(line)
        readable = all(type(record[name]) in (int, float) for name in NUMBERS)
        return record["step"] if readable and isinstance(record["split"], str) else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf
