"""A run's folder: what it holds, and that one run alone is in it at a time."""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from resflax.errors import UserError
from resflax.files import write_atomic
from resflax.run.checkpoint import latest_valid_metadata
from resflax.run.config_diff import config_diff, to_json_dict
from resflax.run.records import Records

FILES = ("config.json", "metrics.jsonl", "results.json", "checkpoints", "curves.png")


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns what goes wrong with the files of a folder into one line."""
    try:
        yield
    except OSError as e:
        raise UserError(
            f"workdir {path} cannot be written: {e.strerror}: the last checkpoint stands; make room"
            " or choose another --workdir"
        ) from e


class Workdir:
    """The folder of one run; records are on disk as soon as written.

    Of several processes one alone `writes`; the others' folder is this one by name only.

    Attributes:
      records: the lines of `metrics.jsonl`.
      notes: what whoever started the run should know, a line each.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path, self.writes, self.notes = path, writes, list[str]()
        self.records = Records(path / "metrics.jsonl")
        self._held: int | None = None

    def close(self) -> None:
        """Lets another process have the folder."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    @staticmethod
    def next_free(path: Path) -> Path:
        """The first of `path`, `path`-2, `path`-3, ... that holds no run."""
        names = itertools.chain(
            [path], (path.with_name(f"{path.name}-{n}") for n in range(2, 10**9))
        )
        return next(p for p in names if not any((p / name).exists() for name in FILES))

    @staticmethod
    def check(path: Path) -> None:
        """Raises `UserError` if a run can neither start there nor go on; touches nothing."""
        try:
            held = [name for name in FILES if (path / name).exists()]
        except OSError as e:
            raise UserError(f"workdir {path} cannot be written: {e.strerror}") from e
        if held and "config.json" not in held:
            raise UserError(
                f"workdir {path} holds {', '.join(held)} of a run but no config.json:"
                " choose another --workdir"
            )
        parent = path
        while not parent.exists() and parent != parent.parent:
            parent = parent.parent
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise UserError(f"workdir {path} cannot be written: choose another --workdir")

    @classmethod
    def open(cls, path: Path, config: ConfigDict) -> "Workdir":
        """Makes the folder and writes the config, or takes the one of a run that is to go on.

        Raises:
          UserError: if the folder cannot be written, or holds a run that has another config or
            that runs now.
        """
        cls.check(path)
        run = cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            run._lock()
            if (path / "config.json").exists():
                run._compare(config)
            text = json.dumps(config.to_dict(), indent=2)
            write_atomic(path / "config.json", text.encode())
        except OSError as e:
            run.close()
            raise UserError(f"workdir {path} cannot be written: {e.strerror}") from e
        except UserError:
            run.close()
            raise
        return run

    def _lock(self) -> None:
        """Keeps other processes out for as long as this one lives."""
        self._held = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UserError(
                    f"workdir {self.path} is that of a run that runs now: wait for its end, or"
                    " choose another --workdir"
                ) from e
            # A file system without locks: then whoever starts two runs in one folder must know.

    def _config(self) -> dict[str, Any]:
        """The config that is there; if that is damaged, the one in the last whole checkpoint."""
        path = self.path / "config.json"
        try:
            return dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as e:
            metadata = latest_valid_metadata(self.path / "checkpoints")
            if metadata is None:
                raise UserError(
                    f"workdir {self.path} holds a config.json that is damaged ({e}): choose another"
                    " --workdir"
                ) from e
        self.notes.append("warning: config.json is damaged: the checkpoint's own is taken")
        return dict(metadata["config"])

    def _compare(self, config: ConfigDict) -> None:
        """Raises `UserError` if the run that is there has another config."""
        old, new = to_json_dict(ConfigDict(self._config())), to_json_dict(config)
        unlike = config_diff(old, new)
        if unlike:
            raise UserError(
                f"workdir {self.path} holds a run of another config ({'; '.join(unlike)}): choose"
                " another --workdir, or --resume=never for a new folder beside it"
            )
        if old["epochs"] != new["epochs"]:
            self.notes.append(
                f"epochs raised from {old['epochs']} to {new['epochs']}: from here on the learning"
                " rate is that of the longer run"
            )
            with contextlib.suppress(FileNotFoundError):
                (self.path / "results.json").rename(
                    self.path / f"results-{old['epochs']}-epochs.json"
                )

    def record(self, record: dict[str, Any]) -> None:
        """Adds a line to `metrics.jsonl`."""
        if not self.writes:
            return
        with _told(self.path):
            self.records.add(record)

    def truncate_records(self, count: int, sha256: str, step: int) -> str:
        """See `Records.keep`."""
        if not self.writes:
            return ""
        with _told(self.path):
            return self.records.keep(count, sha256, step)

    def skipped(self, examples: list[str]) -> None:
        """Writes `skipped.txt`, a line for each example that was left out; no file for none."""
        if examples and self.writes:
            with _told(self.path):
                write_atomic(self.path / "skipped.txt", ("\n".join(examples) + "\n").encode())

    def finish(self, results: dict[str, Any]) -> None:
        """Writes `results.json`, whole or not at all."""
        if self.writes:
            text = json.dumps(results, indent=2) + "\n"
            with _told(self.path):
                write_atomic(self.path / "results.json", text.encode())

    def results(self) -> dict[str, Any] | None:
        """What `finish` wrote; None if the run has not ended."""
        try:
            return json.loads((self.path / "results.json").read_text())
        except (OSError, ValueError):
            return None


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
