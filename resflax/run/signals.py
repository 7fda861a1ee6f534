"""SIGTERM and SIGINT, for a run that ends after its step and goes on at its next start."""

import os
import signal
import socket
import sys
import threading
from types import FrameType
from typing import Any

# A run that is asked to end has so long to finish its step and to save it.
GRACE_SECONDS = 12.0
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class InterruptedRunError(Exception):
    """A run ended because it was asked to; its message says what it leaves.

    Attributes:
      status: with which the process is to end, 128 + the signal's number.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.status = 128 + (number or signal.SIGTERM)


class Interrupt:
    """What was asked of this process, from `__enter__` on.

    The first signal is noted, and the run ends where it next looks. A thread watches as well, since
    no handler of Python's runs while the main thread compiles: it ends the process when the time is
    over, and at once on a second SIGINT.

    Attributes:
      asked: the number of the signal that came first; 0 for none.
      forward: SIGINT is handed on as SIGTERM, which JAX takes where there are several processes.
    """

    asked = 0
    forward = False

    def __enter__(self) -> "Interrupt":
        self._ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self._theirs = theirs  # it lives as long as signals may be written to it
        self._woken = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, _note) for number in SIGNALS}
        self._watcher = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._woken)
        self._theirs.close()
        self._watcher.join()  # which that ends
        self._ours.close()

    def _watch(self) -> None:
        while got := self._ours.recv(1):
            number = got[0]
            if number not in SIGNALS:
                continue
            if self.asked and number == signal.SIGINT:
                os._exit(128 + number)
            if not self.asked:
                self.asked = number
                told = f"{signal.Signals(number).name}: ending after this step"
                print(f"\n{told}; a second Ctrl-C ends at once", file=sys.stderr, flush=True)
                timer = threading.Timer(GRACE_SECONDS, os._exit, [128 + number])
                timer.daemon = True
                timer.start()
                if self.forward and number == signal.SIGINT:
                    os.kill(os.getpid(), signal.SIGTERM)


def _note(number: int, frame: FrameType | None) -> None:
    """A handler of Python's must be there for the number to be written to the socket."""
