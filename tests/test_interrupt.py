"""Signals: noted, patient for a while, and impatient on a second Ctrl-C."""

import signal
import subprocess
import sys
import time

import pytest

from resflax.run.signals import Interrupt

SCRIPT = """
import sys, time
from resflax.run import signals as interrupt
interrupt.PATIENCE_SECONDS = {patience}
with interrupt.Interrupt() as asked:
    print("ready", flush=True)
    while not asked.asked:
        time.sleep(0.01)
    print(int(asked.asked), flush=True)
    time.sleep({busy})  # a step that is not over; it goes on after a signal
    print("step over", flush=True)
sys.exit(128 + asked.asked)
"""


def start(patience, busy):
    script = SCRIPT.format(patience=patience, busy=busy)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_lets_the_step_end(number):
    process = start(patience=30, busy=0.5)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert out == f"{int(number)}\nstep over\n"
    assert f"{number.name}: ending after this step" in err


def test_a_second_ctrl_c_ends_at_once():
    process = start(patience=60, busy=60)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "2\n"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")


def test_a_second_sigterm_changes_nothing():
    process = start(patience=30, busy=1)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "15\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (143, "step over\n")


def test_patience_ends():
    process = start(patience=0.5, busy=60)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert time.monotonic() - began < 30


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with Interrupt() as interrupt:
        assert signal.getsignal(signal.SIGINT) not in before
        assert interrupt.asked == 0
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
