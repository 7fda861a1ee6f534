"""`metrics.jsonl`: one JSON object per line, with a checksum of the whole file."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from resflax.files import quarantine, write_atomic

# Numeric keys of every record.
NUMBERS = ("step", "epoch", "loss", "accuracy")


class Records:
    """Records of a run, each on disk as soon as it is added.

    Attributes:
      path: path of the file.
      count: number of records.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.count, self._digest = path, 0, hashlib.sha256()

    @property
    def sha256(self) -> str:
        """SHA-256 of all records."""
        return self._digest.hexdigest()

    def _reset(self, lines: list[bytes]) -> None:
        self.count, self._digest = len(lines), hashlib.sha256(b"".join(lines))

    def add(self, record: dict[str, Any]) -> None:
        """Appends a record."""
        line = (json.dumps(record) + "\n").encode()
        with open(self.path, "ab") as file:
            file.write(line)
        self.count += 1
        self._digest.update(line)

    def all(self) -> list[dict[str, Any]]:
        """Reads all records."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_bytes().splitlines()]

    def truncate_to(self, count: int, sha256: str, step: int) -> str:
        """Truncates the file to its first `count` records; training writes the others again.

        If those records have changed since, the file is moved to `damaged/`, and the readable
        records up to `step` are kept.

        Args:
          count: number of records when the checkpoint was saved.
          sha256: SHA-256 of these records.
          step: step of the checkpoint.

        Returns:
          "", or a warning.
        """
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        self._reset(lines[:count])
        if (self.count, self.sha256) == (count, sha256):
            if len(lines) > count:
                write_atomic(self.path, b"".join(lines[:count]))
            return ""
        readable = [line for line in lines if _step(line) <= step]
        moved = ""
        if self.path.exists():
            moved = f"; moved to {quarantine(self.path, self.path.parent / 'damaged')}"
        write_atomic(self.path, b"".join(readable))
        self._reset(readable)
        return (
            f"{self.path.name} has changed since step {step}: {len(readable)} of its {count}"
            f" records can be read{moved}"
        )


def _step(line: bytes) -> float:
    """Returns the step of a record; infinity if it cannot be read."""
    try:
        record = json.loads(line)
        readable = all(type(record[name]) in (int, float) for name in NUMBERS)
        return record["step"] if readable and isinstance(record["split"], str) else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf
