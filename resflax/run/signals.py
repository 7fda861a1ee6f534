"""SIGTERM and SIGINT: the run stops after the current step and can be resumed."""

import contextlib
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

# Time to finish the current step and save it after a signal.
GRACE_SECONDS = 12.0
# A second SIGINT after less than this is the same Ctrl-C: a terminal sends it to each process of a
# group, and `timeout` forwards it.
REPEAT_SECONDS = 1.0
# The signals that stop a run, and what ends the process at once after each.
HOW_TO_EXIT: dict[int, str] = {
    signal.SIGTERM: "send SIGINT to exit now",
    signal.SIGINT: "press Ctrl-C again to exit now",
}


class InterruptedRunError(Exception):
    """A run stopped because of a signal; the message says where it was saved.

    Attributes:
      status: exit status of the process, 128 + the signal's number.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.status = 128 + (number or signal.SIGTERM)


class Interrupt:
    """Context manager that notes SIGTERM and SIGINT for the training loop.

    The loop checks `received` after each step. A thread watches too, since Python runs no signal
    handler while the main thread compiles: it ends the process after `GRACE_SECONDS`, and at once
    on a SIGINT that comes `REPEAT_SECONDS` or more after the first signal.

    Attributes:
      received: number of the first signal; 0 if there was none.
      forward: send SIGTERM on SIGINT, which JAX synchronizes over several processes.
    """

    received = 0
    forward = False

    def __enter__(self) -> "Interrupt":
        self._first = 0.0  # time of the first signal
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(_watched(self._on_signal))
        for number in HOW_TO_EXIT:
            self._stack.callback(signal.signal, number, signal.signal(number, _ignore))
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()

    def _on_signal(self, number: int) -> None:
        if number not in HOW_TO_EXIT:
            return
        repeated = time.monotonic() - self._first < REPEAT_SECONDS
        if self.received and number == signal.SIGINT and not repeated:
            os._exit(128 + number)
        if not self.received:
            self.received, self._first = number, time.monotonic()
            line = f"{signal.Signals(number).name}: stopping after this step"
            print(f"\n{line}; {HOW_TO_EXIT[number]}", file=sys.stderr, flush=True)
            timer = threading.Timer(GRACE_SECONDS, _exit_late, [number])
            timer.daemon = True
            timer.start()
            if self.forward and number == signal.SIGINT:
                os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _watched(on_signal: Callable[[int], None]) -> Iterator[None]:
    """Calls a function with the number of each signal, in a thread, while the block runs.

    Python runs no signal handler while the main thread is in a compiler, but it writes the signals
    that have a handler to a socket.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    old = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        while data := reader.recv(1):
            on_signal(data[0])

    watcher = threading.Thread(target=watch, name="signals", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(old)
        writer.close()
        watcher.join()  # its socket is at its end
        reader.close()


def _exit_late(number: int) -> None:
    """Ends the process, whose step does not end within `GRACE_SECONDS`."""
    reason = f"the step takes more than {GRACE_SECONDS:g} s"
    line = f"{signal.Signals(number).name}: exiting without saving, since {reason}"
    print(f"{line}; the same command resumes from the last checkpoint", file=sys.stderr, flush=True)
    os._exit(128 + number)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Does nothing; Python writes signals to the wakeup socket only if there is a handler."""


@contextlib.contextmanager
def exit_at_interrupt() -> Iterator[None]:
    """Ends the process at once on SIGINT while the block runs, which must leave nothing to save."""

    def on_signal(number: int) -> None:
        if number == signal.SIGINT:
            print("\nstopped", file=sys.stderr, flush=True)
            os._exit(128 + signal.SIGINT)

    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    with _watched(on_signal):
        yield


def raise_at_interrupts() -> None:
    """Makes SIGINT raise `KeyboardInterrupt`, once per `REPEAT_SECONDS`.

    A second one while the first is handled would keep files from being removed.
    """
    last = -math.inf

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal last
        repeated, last = time.monotonic() - last < REPEAT_SECONDS, time.monotonic()
        if not repeated:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, handler)
