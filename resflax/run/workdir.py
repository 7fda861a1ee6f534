"""The directory of one run: config, records, results, and a lock."""

import contextlib
import errno
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from resflax.errors import UserError, first_names
from resflax.files import disk_errors_as_user_error, encode_text, user_path, write_atomic
from resflax.run.checkpoint import latest_valid_metadata
from resflax.run.config_diff import config_diff, flatten_config
from resflax.run.records import Records

MAX_CHANGES = 8  # keys that a message about another config names
FILES = ("config.json", "metrics.jsonl", "results.json", "checkpoints", "curves.png")


class ExistingRun(NamedTuple):
    """Results and latest checkpoint metadata of the run in a workdir.

    Attributes:
      results: results of the finished run; None if there are none, or its epochs were raised.
      metadata: JSON values of the latest checkpoint; None if there is none.
    """

    results: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None


class Workdir:
    """The directory of one run, which one process at a time may use.

    With several processes, only the main one writes (`writes`); the others only know the path.

    Attributes:
      path: path of the directory.
      writes: whether this process writes to it.
      records: the lines of `metrics.jsonl`.
      notes: lines to show to the user who starts the run.
    """

    def __init__(self, path: Path, *, writes: bool = True, option: str = "--workdir") -> None:
        self.path, self.writes, self.option, self.notes = path, writes, option, list[str]()
        self.records = Records(path / "metrics.jsonl")
        self._lock_file: int | None = None

    def close(self) -> None:
        """Releases the lock."""
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    @staticmethod
    def next_free(path: Path) -> Path:
        """Returns the first of `path`, `path`-2, `path`-3, ... that holds no run."""
        numbered = (path.with_name(f"{path.name}-{n}") for n in itertools.count(2))
        candidates = itertools.chain([path], numbered)
        return next(p for p in candidates if not any((p / name).exists() for name in FILES))

    @staticmethod
    def check(path: Path, option: str = "--workdir") -> None:
        """Checks, without changing anything, that a run can start or resume in `path`.

        Raises:
          UserError: if it cannot be written, or has files of a run but no config.
        """
        try:
            existing = [name for name in FILES if (path / name).exists()]
        except OSError as e:
            raise UserError(f"workdir {path} cannot be written: {e.strerror}") from e
        if existing and "config.json" not in existing:
            raise UserError(
                f"workdir {path} has {', '.join(existing)} of a run but no config.json:"
                f" choose another {option}"
            )
        parent = path
        while not parent.exists() and parent != parent.parent:
            parent = parent.parent
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise UserError(f"workdir {path} cannot be written: choose another {option}")

    @classmethod
    def inspect(
        cls,
        path: str | Path,
        config: dict[str, Any],
        *,
        resumable: Sequence[str] = (),
        increasable: Mapping[str, float] = MappingProxyType({}),
        movable: Mapping[str, Sequence[str]] = MappingProxyType({}),
        defaults: Mapping[str, Any] = MappingProxyType({}),
    ) -> ExistingRun:
        """Reads what the run in `path` needs before it is opened, without changing anything.

        See `open` for the arguments.

        Raises:
          UserError: as `open` does.
        """
        path = user_path(path, "--workdir")
        cls.check(path)
        workdir = cls(path)
        if not (path / "config.json").exists():
            return ExistingRun()
        raised = workdir._check_config(config, resumable, increasable, movable, defaults)
        return ExistingRun(
            # `open` restores a corrupt config, of which there is a note.
            results=None if raised or workdir.notes else workdir.read_results(),
            metadata=latest_valid_metadata(path / "checkpoints"),
        )

    @classmethod
    def open(
        cls,
        path: str | Path,
        config: dict[str, Any],
        *,
        resumable: Sequence[str] = (),
        increasable: Mapping[str, float] = MappingProxyType({}),
        movable: Mapping[str, Sequence[str]] = MappingProxyType({}),
        defaults: Mapping[str, Any] = MappingProxyType({}),
        option: str = "--workdir",
    ) -> "Workdir":
        """Creates and locks the directory and writes `config.json`, or opens it to resume its run.

        Args:
          path: path of the directory.
          config: the config, as JSON values.
          resumable: prefixes of the dotted keys that may differ from those of the existing run.
          increasable: keys that may be larger than before, such as the number of epochs, with the
            number that 0 stands for.
          movable: keys whose values name files, with the prefixes of those that may have moved; the
            caller compares the files' contents.
          defaults: a config with the values of keys that are missing in that of the existing run,
            which was made by an earlier version.
          option: command-line option that names the directory, for error messages.

        Raises:
          UserError: if it cannot be written, has a run with another config, or is in use.
        """
        path = user_path(path, option)
        cls.check(path, option)
        workdir = cls(path, option=option)
        try:
            path.mkdir(parents=True, exist_ok=True)
            workdir._lock()
            if (path / "config.json").exists():
                for key, old in workdir._check_config(
                    config, resumable, increasable, movable, defaults
                ).items():
                    workdir._increase(key, old, config[key])
            write_atomic(path / "config.json", json.dumps(config, indent=2).encode())
        except OSError as e:
            workdir.close()
            raise UserError(f"workdir {path} cannot be written: {e.strerror}") from e
        except UserError:
            workdir.close()
            raise
        return workdir

    def _lock(self) -> None:
        """Locks the directory until the process ends or `close` is called."""
        try:
            import fcntl
        except ImportError:  # Windows has no flock: two runs in one workdir are not detected
            return
        self._lock_file = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UserError(
                    f"workdir {self.path} is in use by another process: wait for it to finish, or"
                    f" choose another {self.option}"
                ) from e
            # A file system without locks: two runs in one workdir are not detected.

    def _read_config(self) -> dict[str, Any]:
        """Reads `config.json`; if it is corrupt, the copy in the latest valid checkpoint."""
        path = self.path / "config.json"
        try:
            return dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as e:
            metadata = latest_valid_metadata(self.path / "checkpoints")
            if metadata is None:
                raise UserError(
                    f"workdir {self.path} has a corrupt config.json ({e}): choose another"
                    f" {self.option}"
                ) from e
        self.notes.append("warning: config.json is corrupt: using the copy in the checkpoint")
        return dict(metadata["config"])

    def _check_config(
        self,
        config: dict[str, Any],
        resumable: Sequence[str],
        increasable: Mapping[str, float],
        movable: Mapping[str, Sequence[str]],
        defaults: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Returns the old values of the keys that were raised.

        Raises:
          UserError: if the existing run has another config.
        """
        old = flatten_config(defaults) | flatten_config(self._read_config())
        changed = config_diff(
            old, config, resumable=resumable, increasable=increasable, movable=movable
        )
        if changed:
            resume = ", or --resume=never for a new one" if self.option == "--workdir" else ""
            raise UserError(
                f"workdir {self.path} has a run with another config"
                f" ({first_names(changed, MAX_CHANGES, '; ')}):"
                f" choose another {self.option}{resume}"
            )
        return {key: old[key] for key in increasable if old.get(key, config[key]) != config[key]}

    def _increase(self, key: str, old: Any, new: Any) -> None:
        schedule = ": from now on the learning rate follows the longer schedule"
        self.notes.append(
            f"{key} raised from {old} to {new or 'no limit'}{schedule if key == 'epochs' else ''}"
        )
        with contextlib.suppress(FileNotFoundError):
            (self.path / "results.json").rename(self.path / f"results-{old}-{key}.json")

    def disk_errors(self, name: str = "") -> contextlib.AbstractContextManager[None]:
        """Turns errors while writing in the directory into a `UserError` of one line.

        Args:
          name: of the file, for the message; by default it names the directory only.
        """
        return disk_errors_as_user_error(
            f"{f'{name} in ' if name else ''}workdir {self.path} cannot be written",
            lambda: f"the last checkpoint is intact; make room, or choose another {self.option}",
        )

    def add_record(self, record: dict[str, Any]) -> None:
        """Appends a line to `metrics.jsonl`."""
        if self.writes:
            with self.disk_errors():
                self.records.add(record)

    def truncate_records(self, count: int, sha256: str, step: int) -> str:
        """Calls `Records.truncate_to`."""
        if not self.writes:
            return ""
        with self.disk_errors():
            return self.records.truncate_to(count, sha256, step)

    def write_skipped(self, examples: list[str]) -> None:
        """Writes `skipped.txt`, one line per skipped example; no file if there are none."""
        if examples and self.writes:
            with self.disk_errors():
                write_atomic(self.path / "skipped.txt", encode_text("\n".join([*examples, ""])))

    def write_results(self, results: dict[str, Any]) -> None:
        """Writes `results.json`."""
        if self.writes:
            with self.disk_errors():
                text = json.dumps(results, indent=2) + "\n"
                write_atomic(self.path / "results.json", text.encode())

    def read_results(self) -> dict[str, Any] | None:
        """Reads `results.json`; None if the run has not finished."""
        try:
            return json.loads((self.path / "results.json").read_text())
        except (OSError, ValueError):
            return None
