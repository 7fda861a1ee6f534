"""SIGTERM and SIGINT: time for the current step, and an immediate exit on a later Ctrl-C."""

import signal
import subprocess
import sys
import time

import pytest

from resflax.run.signals import Interrupt, raise_at_interrupts

SCRIPT = """
import sys, time
from resflax.run import signals
signals.GRACE_SECONDS, signals.REPEAT_SECONDS = {grace}, {repeat}
with signals.Interrupt() as interrupt:
    print("ready", flush=True)
    while not interrupt.received:
        time.sleep(0.01)
    print(int(interrupt.received), flush=True)
    time.sleep({busy})  # the rest of a step
    print("step finished", flush=True)
sys.exit(128 + interrupt.received)
"""


def start(grace, busy, repeat=1.0):
    script = SCRIPT.format(grace=grace, busy=busy, repeat=repeat)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_lets_the_step_finish(number):
    process = start(grace=30, busy=0.5)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert out == f"{int(number)}\nstep finished\n"
    how = "press Ctrl-C again" if number == signal.SIGINT else "send SIGINT"
    assert f"{number.name}: stopping after this step; {how} to exit now" in err


def test_second_sigint_exits_immediately():
    process = start(grace=60, busy=60, repeat=0.05)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "2\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")


@pytest.mark.parametrize(
    "numbers",
    [
        (signal.SIGINT, signal.SIGINT),
        (signal.SIGINT, signal.SIGINT, signal.SIGINT),
        (signal.SIGTERM, signal.SIGINT),
        (signal.SIGINT, signal.SIGTERM),
    ],
)
def test_signals_at_once_let_the_step_finish(numbers):
    process = start(grace=30, busy=0.2, repeat=30.0)
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.02)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + numbers[0]
    assert out == f"{int(numbers[0])}\nstep finished\n"
    assert err.count("stopping after this step") == 1


def test_interrupts_at_once_raise_one_exception():
    handler = signal.getsignal(signal.SIGINT)
    try:
        raise_at_interrupts()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # does not raise
    finally:
        signal.signal(signal.SIGINT, handler)


@pytest.mark.slow
def test_second_sigterm_is_ignored():
    process = start(grace=30, busy=1)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "15\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (143, "step finished\n")


def test_process_exits_after_the_grace_period():
    process = start(grace=0.5, busy=60)
    start_time = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 143
    assert time.monotonic() - start_time < 30
    assert "SIGTERM: exiting without saving, since the step takes more than 0.5 s; the same" in err


def test_handlers_are_restored_on_exit():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with Interrupt() as interrupt:
        assert signal.getsignal(signal.SIGINT) not in before
        assert interrupt.received == 0
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


# A handler of Python's does not end the loop, as it does not end a compiler's work.
IN_C = """
import ctypes, signal
from resflax.run.signals import exit_at_interrupt
signal.signal(signal.SIGINT, lambda *_: None)
with exit_at_interrupt():
    pass
with exit_at_interrupt():
    print("ready", flush=True)
    sleep, left = ctypes.CDLL(None).sleep, 60
    while left:
        left = sleep(left)
print("slept", flush=True)
"""


def test_interrupt_ends_the_process_during_a_call_in_c():
    process = subprocess.Popen(
        [sys.executable, "-c", IN_C], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (128 + signal.SIGINT, "", "\nstopped\n")
