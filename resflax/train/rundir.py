"""A run's folder: what it holds, and that no two runs share one."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from resflax.errors import UserError
from resflax.files import write_whole

FILES = ("config.json", "metrics.jsonl", "results.json", "checkpoints", "curves.png")


class RunDir:
    """The folder of one run, made when it is opened; records are on disk as soon as written.

    Of several processes one alone `writes`; the others' folder is this one by name only.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path, self.writes = path, writes

    @staticmethod
    def check(path: Path) -> None:
        """Raises `UserError` if a run cannot start there; touches nothing."""
        try:
            held = [name for name in FILES if (path / name).exists()]
        except OSError as e:
            raise UserError(f"workdir {path} cannot be written: {e.strerror}") from e
        if held:
            raise UserError(
                f"workdir {path} holds another run ({', '.join(held)}): choose another --workdir"
            )
        parent = path
        while not parent.exists() and parent != parent.parent:
            parent = parent.parent
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise UserError(f"workdir {path} cannot be written: choose another --workdir")

    @classmethod
    def open(cls, path: Path, config: ConfigDict) -> "RunDir":
        """Makes the folder and writes the config.

        Raises:
          UserError: if the folder holds another run or cannot be written.
        """
        cls.check(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            # "x": of two runs that start at once in one folder, one is refused.
            with open(path / "config.json", "x") as file:
                json.dump(config.to_dict(), file, indent=2)
        except FileExistsError:
            raise UserError(f"workdir {path} holds another run: choose another --workdir") from None
        except OSError as e:
            raise UserError(f"workdir {path} cannot be written: {e.strerror}") from e
        return cls(path)

    def record(self, record: dict[str, Any]) -> None:
        """Adds a line to `metrics.jsonl`."""
        if not self.writes:
            return
        with open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`."""
        with open(self.path / "metrics.jsonl") as file:
            return [json.loads(line) for line in file]

    def skipped(self, examples: list[str]) -> None:
        """Writes `skipped.txt`, a line for each example that was left out; no file for none."""
        if examples and self.writes:
            write_whole(self.path / "skipped.txt", ("\n".join(examples) + "\n").encode())

    def finish(self, results: dict[str, Any]) -> None:
        """Writes `results.json`, whole or not at all."""
        if self.writes:
            text = json.dumps(results, indent=2) + "\n"
            write_whole(self.path / "results.json", text.encode())


def params_sha256(params: Any) -> str:
    """The SHA-256 of the leaves' bytes, in the order of their paths, "stage1/conv1/kernel".

    >>> params_sha256({"a": np.zeros(2, np.float32)})[:8]
    'af5570f5'
    """
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    digest = hashlib.sha256()
    for _, leaf in sorted(leaves.items()):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
