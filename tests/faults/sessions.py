"""Sessions of the processes that a campaign starts: they end when the campaign ends.

`python sessions.py` is the guardian. It reads "+SESSION" and "-SESSION" lines from the campaign
through a pipe. The pipe closes when the campaign ends, even by SIGKILL; the guardian then kills the
sessions that are still running.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def session_members(session: int) -> list[int]:
    """Returns the processes of a session that are running."""
    members = []
    for path in Path("/proc").iterdir():
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if path.name.isdecimal() and int(fields[3]) == session and fields[0] != "Z":
            members.append(int(path.name))
    return members


def kill_sessions(sessions: Iterable[int], attempts: int = 20) -> None:
    """Kills all processes of some sessions, including those that start in the meantime."""
    for session in sessions:
        for _ in range(attempts):
            members = session_members(session)
            for process in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            if not members:
                break
            time.sleep(0.05)


class Sessions:
    """Starts processes, each in its own session, that a guardian kills if this process ends."""

    def __init__(self) -> None:
        self._running: set[int] = set()
        self._guardian: subprocess.Popen[bytes] | None = None
        self._ending = False
        self._starting = False  # in the main thread, where signal handlers run
        self._status: int | None = None

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Calls `subprocess.Popen`."""
        if self._ending:
            raise RuntimeError("the campaign is ending: no new process is started")
        if self._guardian is None:
            self._guardian = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        in_main_thread = threading.current_thread() is threading.main_thread()
        self._starting = self._starting or in_main_thread
        process = subprocess.Popen(command, start_new_session=True, **options)
        self._running.add(process.pid)
        self._notify("+", process.pid)
        if in_main_thread:
            self._starting = False
        if self._ending:  # since the check above
            kill_sessions([process.pid])
        if in_main_thread and self._status is not None:
            raise SystemExit(self._status)
        return process

    def exit(self, status: int) -> None:
        """Ends all sessions and raises `SystemExit`; for signal handlers.

        While the main thread starts a process that is not registered yet, `start` does so instead.
        """
        self.end()
        if self._starting:
            self._status = status
            return
        raise SystemExit(status)

    def remove(self, process: subprocess.Popen[bytes]) -> None:
        """Forgets a process that has ended: its number can be used again."""
        if process.pid in self._running:
            self._running.discard(process.pid)
            self._notify("-", process.pid)

    def end(self) -> None:
        """Kills all sessions; no process can be started afterwards."""
        self._ending = True
        kill_sessions(list(self._running))

    def close(self) -> None:
        """Ends the guardian, which kills what is still running."""
        if self._guardian is not None:
            self._guardian.communicate()
            self._guardian = None

    def _notify(self, sign: str, session: int) -> None:
        assert self._guardian is not None
        assert self._guardian.stdin is not None
        os.write(self._guardian.stdin.fileno(), f"{sign}{session}\n".encode())


SESSIONS = Sessions()


def guard() -> None:
    """Waits for the end of the campaign, then kills the sessions that are still running."""
    running: set[int] = set()
    for line in sys.stdin:
        session = int(line[1:])
        (running.add if line[0] == "+" else running.discard)(session)
    kill_sessions(running)


if __name__ == "__main__":
    guard()
