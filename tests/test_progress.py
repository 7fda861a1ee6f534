"""Progress meters on terminals and pipes; speed and remaining time of a run."""

import os
import struct

import pytest

from resflax.progress import ProgressMeter, progress_range
from resflax.run.progress import RunProgress
from resflax.run.throughput import Throughput


class Terminal:
    """A pseudo-terminal: `file` is the program's end."""

    def __init__(self, rows, columns):
        pty = pytest.importorskip("pty")
        self.master, slave = pty.openpty()
        os.set_blocking(self.master, False)
        self.file = os.fdopen(slave, "w")
        self.resize(rows, columns)

    def resize(self, rows, columns):
        import fcntl
        import termios

        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self.file.fileno(), termios.TIOCSWINSZ, size)

    def frames(self):
        """Returns what was drawn since the last call, split at carriage returns."""
        self.file.flush()
        data = b""
        while part := self._read():
            data += part
        text = data.decode().replace("\r\n", "\r")
        return [frame for frame in text.split("\r") if frame.strip()]

    def _read(self):
        try:
            return os.read(self.master, 4096)
        except BlockingIOError:
            return b""

    def close(self):
        self.file.close()
        os.close(self.master)


@pytest.fixture
def open_terminal():
    """Opens terminals, as `open_terminal(rows, columns)`."""
    terminals = []

    def open_one(rows, columns):
        terminals.append(Terminal(rows, columns))
        return terminals[-1]

    yield open_one
    for terminal in terminals:
        terminal.close()


@pytest.fixture
def clock(monkeypatch):
    """A fake `time.monotonic`, in seconds: `clock[0]` is the time."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def train_record(step, epoch):
    return {
        "step": step,
        "epoch": epoch,
        "split": "train",
        "loss": 1.25,
        "accuracy": 0.5,
        "examples_per_second": 1234.5,
    }


def show_run(progress):
    """Shows a run of 40 steps with two evaluations."""
    for step in (10, 40):
        train = train_record(step, step / 20)
        progress.train(train, 3.0)
        progress.evaluation({**train, "split": "test", "accuracy": 0.75}, 3.0)
    progress.close()


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (24, 80), (24, 40), (5, 20), (50, 200)])
def test_run_progress_fits_terminals_of_any_size(rows, columns, open_terminal, monkeypatch):
    terminal = open_terminal(rows, columns)
    monkeypatch.setattr("sys.stdout", terminal.file)
    show_run(RunProgress(40))
    frames = terminal.frames()
    width = columns or 80  # a terminal that reports no size
    assert frames
    assert all(len(frame) <= width for frame in frames)
    if width >= 80:
        assert "40/40" in frames[-1]
        assert "loss 1.250, accuracy 0.500, 1,234 ex/s, test 0.7500" in frames[-1]
        assert "left" in frames[-1]


def test_bar_keeps_the_last_test_accuracy(open_terminal, monkeypatch):
    terminal = open_terminal(24, 80)
    monkeypatch.setattr("sys.stdout", terminal.file)
    progress = RunProgress(40)
    progress.evaluation({**train_record(10, 0.5), "split": "test", "accuracy": 0.75}, 3.0)
    assert "10/40" in terminal.frames()[-1]
    progress.train(train_record(20, 1.0), 3.0)
    progress.close()
    last = terminal.frames()[-1]
    assert "20/40" in last
    assert "left, loss 1.250, accuracy 0.500, 1,234 ex/s, test 0.7500" in last


def test_meter_follows_a_terminal_that_is_resized(open_terminal):
    terminal = open_terminal(24, 80)
    meter = ProgressMeter(10, file=terminal.file)
    meter.update(5, "x" * 100, force=True)
    assert max(map(len, terminal.frames())) == 80
    terminal.resize(24, 30)
    meter.update(5, "x" * 100, force=True)
    meter.close()
    # A frame overwrites the rest of a longer one with spaces.
    assert all(len(frame.rstrip()) <= 30 for frame in terminal.frames())


def test_meter_prints_lines_above_the_bar(open_terminal):
    terminal = open_terminal(24, 80)
    meter = ProgressMeter(10, file=terminal.file)
    meter.update(5, "text", force=True)
    meter.print("a line")
    meter.close()
    frames = terminal.frames()
    assert "a line" in frames
    assert "5/10" in frames[-1]


def test_meter_shows_a_float_total_in_percent(open_terminal):
    terminal = open_terminal(24, 80)
    meter = ProgressMeter(8.0, file=terminal.file)
    meter.update(2.0, "text", force=True)
    assert "25 %" in terminal.frames()[-1]
    meter.close()


def test_meter_without_a_total_shows_the_text(open_terminal, capsys):
    terminal = open_terminal(24, 80)
    meter = ProgressMeter(file=terminal.file)
    meter.update(2, "text", force=True)
    assert terminal.frames()[-1].rstrip() == "00:00, text"
    meter.close()
    meter = ProgressMeter()
    meter.update(2, "text", force=True)
    meter.update(2, "text", remaining=61.0, force=True)
    assert capsys.readouterr().out.splitlines() == ["text", "text"]


def test_meter_skips_work_of_earlier_processes(open_terminal, capsys, clock):
    meter = ProgressMeter(100)
    meter.skip(50)
    clock[0] += 10.0
    meter.update(10, "text")
    assert capsys.readouterr().out == " 60%, text, 00:40 left\n"
    terminal = open_terminal(24, 80)
    meter = ProgressMeter(100, file=terminal.file)
    meter.skip(50)
    assert "50/100, ? left" in terminal.frames()[-1]
    meter.close()


def test_silent_meter_prints_nothing(open_terminal, capsys):
    terminal = open_terminal(24, 80)
    for file in (terminal.file, None):
        meter = ProgressMeter(2, file=file, silent=True)
        meter.skip(1)
        meter.update(1, "text", force=True)
        meter.print("a line")
        meter.close()
    assert terminal.frames() == []
    assert capsys.readouterr().out == ""


def test_run_progress_prints_lines_to_a_pipe(capsys):
    progress = RunProgress(40)
    show_run(progress)
    progress.print("the end")
    assert capsys.readouterr().out.splitlines() == [
        " 25%, epoch 0.5, step 10/40: "
        "loss 1.250, accuracy 0.500, 1,234 examples/s, test 0.7500, 00:03 left",
        "100%, epoch 2.0, step 40/40: "
        "loss 1.250, accuracy 0.500, 1,234 examples/s, test 0.7500, 00:03 left",
        "the end",
    ]


def test_run_progress_counts_resumed_steps(capsys):
    progress = RunProgress(40)
    progress.resume(30)
    progress.evaluation({**train_record(30, 1.5), "split": "validation"}, 3.0)
    assert capsys.readouterr().out == (
        " 75%, epoch 1.5, step 30/40: validation 0.5000, 00:03 left\n"
    )


def test_run_progress_prints_between_evaluations(capsys, clock):
    progress = RunProgress(100, interval=10.0)
    for step in range(1, 31):
        clock[0] += 1.0
        progress.train(train_record(step, step / 50), 0.0)
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        " 10%, epoch 0.2, step 10/100",
        " 20%, epoch 0.4, step 20/100",
        " 30%, epoch 0.6, step 30/100",
    ]


def test_progress_range_prints_every_five_seconds(capsys, clock):
    for _ in progress_range(12, "reading"):
        clock[0] += 1.0
    assert capsys.readouterr().out.splitlines() == [
        " 42%, reading, 00:07 left",
        " 83%, reading, 00:02 left",
    ]


def test_progress_range_is_silent_for_short_loops(open_terminal, capsys, monkeypatch):
    assert list(progress_range(1000, "reading")) == list(range(1000))
    assert list(progress_range(0, "reading")) == []
    assert capsys.readouterr().out == ""
    terminal = open_terminal(24, 80)
    monkeypatch.setattr("sys.stdout", terminal.file)
    assert list(progress_range(1000, "reading")) == list(range(1000))
    assert terminal.frames() == []


def test_throughput_excludes_compilation_and_evaluation(clock):
    throughput = Throughput(steps=5)
    clock[0] += 30.0  # the first step compiles
    throughput.step(10)
    for _ in range(2):
        clock[0] += 1.0
        throughput.step(10)
    assert throughput.lap() == 10.0
    clock[0] += 7.0
    assert throughput.pause() == 7.0
    clock[0] += 4.0
    throughput.step(10)
    assert throughput.lap() == 2.5
    assert throughput.overall == 30 / 6
    # 13 s for three steps and an evaluation after the first step; one step remains.
    assert throughput.remaining(4) == pytest.approx(13 / 3)
