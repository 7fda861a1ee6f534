"""Worker processes, as seen from the command line's process."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peers import AUXILIARY, IMPLEMENTATIONS
from benchmarks.task import Task
from resflax.errors import UserError

ROOT = Path(__file__).parents[1]
# So that timed compilations are not read from a cache.
NO_CACHES = {"JAX_ENABLE_COMPILATION_CACHE": "false", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}


def worker_env(name: str, device: str, *, no_caches: bool) -> dict[str, str]:
    """Returns the environment variables of a worker process.

    Args:
      name: key of `IMPLEMENTATIONS` or `AUXILIARY`.
      device: "auto", "cpu" or "gpu".
      no_caches: disable compilation caches.
    """
    env = {key: value for key, value in os.environ.items() if key != "RESFLAX_CONV"}
    backend = (IMPLEMENTATIONS | AUXILIARY)[name].backend
    env |= {"RESFLAX_CONV": backend} if backend else {}
    env |= {"JAX_PLATFORMS": {"cpu": "cpu", "gpu": "cuda"}[device]} if device != "auto" else {}
    env |= NO_CACHES if no_caches else {}
    # Several workers share a GPU, so none may reserve all of its memory.
    env.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return env


class Worker:
    """A worker process, which runs one command at a time and is idle in between.

    Attributes:
      name: key of `IMPLEMENTATIONS` or `AUXILIARY`.
      info: platform and library, as reported at the start.
    """

    def __init__(self, name: str, task: Task, mode: str, *, no_caches: bool = False) -> None:
        self.name = name
        # A file, because a pipe would block the worker unless it is read. Closed by `close`.
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            cwd=ROOT,
            env=worker_env(name, task.device, no_caches=no_caches),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        try:
            fields = dataclasses.asdict(task)
            self.info = self.call("start", implementation=name, task=fields, mode=mode)
        except BaseException:
            self.close()
            raise

    def call(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Runs a method of `benchmarks.session.Session` in the process and returns its result.

        Raises:
          UserError: if the process has ended, with the last line of its log.
        """
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise UserError(f"{self.name}: command {command!r} failed: {self._last_log_line()}")
        return json.loads(line)

    def _last_log_line(self) -> str:
        status = self.process.wait()
        self.log.seek(0)
        lines = [line.strip() for line in self.log if line.strip()]
        return lines[-1] if lines else f"exit status {status}"

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.communicate()
        self.log.close()


class Workers:
    """Context manager that closes the workers started in it."""

    def __enter__(self) -> "Workers":
        self.workers: list[Worker] = []
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.close()

    def start(self, name: str, task: Task, mode: str, *, no_caches: bool = False) -> Worker:
        """Starts a worker."""
        worker = Worker(name, task, mode, no_caches=no_caches)
        self.workers.append(worker)
        return worker
