"""The front's end of a worker: starts the process, asks, ends it."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peers import CONTENDERS, METERS
from benchmarks.task import Task
from resflax.errors import UserError

ROOT = Path(__file__).parents[1]
# A compilation that is timed must not come from anybody's cache.
NO_CACHES = {"JAX_ENABLE_COMPILATION_CACHE": "false", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}


def environment(contender: str, device: str, *, fresh: bool) -> dict[str, str]:
    """The variables of a worker's process."""
    env = {key: value for key, value in os.environ.items() if key != "RESFLAX_CONV"}
    road = (CONTENDERS | METERS)[contender].road
    env |= {"RESFLAX_CONV": road} if road else {}
    env |= {"JAX_PLATFORMS": {"cpu": "cpu", "gpu": "cuda"}[device]} if device != "auto" else {}
    env |= NO_CACHES if fresh else {}
    # Several contenders share a GPU: none may take all of its memory in advance.
    env.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return env


class Worker:
    """A contender's process, idle until asked.

    Attributes:
      name: of the contender.
      about: what it said of itself at the start: platform, library.
    """

    def __init__(self, contender: str, task: Task, mode: str, *, fresh: bool = False) -> None:
        self.name = contender
        # Closed by `close`; a file and not a pipe, which somebody would have to empty.
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            cwd=ROOT,
            env=environment(contender, task.device, fresh=fresh),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        try:
            about = dataclasses.asdict(task)
            self.about = self.ask("start", contender=contender, task=about, mode=mode)
        except BaseException:
            self.close()
            raise

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """The answer to one command.

        Raises:
          UserError: if the process has ended, with the last line that it wrote.
        """
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise UserError(f"{self.name} failed at {what!r}: {self._last_words()}")
        return json.loads(line)

    def _last_words(self) -> str:
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
    """Every worker that is opened inside a `with` is closed at its end."""

    def __enter__(self) -> "Workers":
        self.open: list[Worker] = []
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.open:
            worker.close()

    def add(self, contender: str, task: Task, mode: str, *, fresh: bool = False) -> Worker:
        """Opens one more."""
        worker = Worker(contender, task, mode, fresh=fresh)
        self.open.append(worker)
        return worker
