"""What a run says, on a terminal and elsewhere."""

import os
import subprocess
import sys
import textwrap

import pytest

from resflax.data.in_memory import told as _told
from resflax.run.throughput import Meter
from resflax.train import Progress

RUN = textwrap.dedent("""
    from resflax.train import Progress
    progress = Progress(40)
    for step in (10, 40):
        train = {"step": step, "epoch": step / 20, "split": "train", "loss": 1.25,
                 "accuracy": 0.5, "examples_per_second": 1234.5}
        progress.train(train, 3.0)
        progress.test({**train, "split": "test", "accuracy": 0.75}, 3.0)
    progress.close()
    print("the end")
""")


@pytest.mark.parametrize("size", ["0x0", "24x80"])
def test_a_terminal_of_any_size_shows_a_bar(size):
    pty = pytest.importorskip("pty")
    import fcntl
    import struct
    import termios

    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", *map(int, size.split("x")), 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    done = subprocess.Popen([sys.executable, "-c", RUN], stdout=end, env=env)
    os.close(end)
    shown = b""
    while part := _read(terminal):
        shown += part
    assert done.wait() == 0
    os.close(terminal)
    frames = shown.decode().replace("\r\n", "\r").split("\r")
    last = [frame for frame in frames if "40/40" in frame][-1]
    assert "loss 1.250, accuracy 0.500, 1,234 ex/s, test 0.7500" in last
    assert "left" in last
    assert all(len(frame) <= 80 for frame in frames)
    assert "the end" in frames


def _read(terminal):
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other end is closed
        return b""


def test_a_pipe_gets_plain_lines(capsys):
    exec(RUN)
    assert capsys.readouterr().out.splitlines() == [
        "epoch 0.5, step 10/40: "
        "loss 1.250, accuracy 0.500, 1,234 examples/s, test 0.7500, 00:03 left",
        "epoch 2.0, step 40/40: "
        "loss 1.250, accuracy 0.500, 1,234 examples/s, test 0.7500, 00:03 left",
        "the end",
    ]


def test_long_epochs_are_told_between_evaluations(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = Progress(100, every=10.0)
    for step in range(1, 31):
        now[0] += 1.0
        record = {"step": step, "epoch": step / 50, "split": "train", "loss": 1.0, "accuracy": 0.0}
        progress.train({**record, "examples_per_second": 1.0}, 0.0)
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "epoch 0.2, step 10/100",
        "epoch 0.4, step 20/100",
        "epoch 0.6, step 30/100",
    ]


def test_reading_is_told_every_five_seconds(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    for _ in _told(12, "reading"):
        now[0] += 1.0
    assert capsys.readouterr().out.splitlines() == [
        "reading: 5 of 12, 7 s left",
        "reading: 10 of 12, 2 s left",
    ]


def test_speed_leaves_out_set_up_and_evaluation(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    meter = Meter(steps=5)
    now[0] += 30.0  # the first step compiles
    meter.step(10)
    for _ in range(2):
        now[0] += 1.0
        meter.step(10)
    assert meter.lap() == 10.0
    now[0] += 7.0
    assert meter.pause() == 7.0
    now[0] += 4.0
    meter.step(10)
    assert meter.lap() == 2.5
    assert meter.overall == 30 / 6
    # 13 s for three steps and an evaluation after the first step; one step is left.
    assert meter.left(4) == pytest.approx(13 / 3)
