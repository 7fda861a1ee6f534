"""Progress meters on terminals and pipes; speed and remaining time of a run."""

import os
import struct

import pytest

from resflax.progress import ProgressMeter, progress_range
from resflax.run.progress import RunProgress
from resflax.run.throughput import RareTask, Throughput


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
        progress.train(train, 3.0, evaluates=True)
        progress.evaluation({**train, "split": "test", "accuracy": 0.75}, 3.0)
    progress.close()


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (24, 80), (24, 40), (5, 20), (50, 200)])
def test_run_progress_fits_terminals_of_any_size(rows, columns, open_terminal, monkeypatch):
    terminal = open_terminal(rows, columns)
    monkeypatch.setattr("sys.stdout", terminal.file)
    show_run(RunProgress(40, 20))
    frames = terminal.frames()
    width = columns or 80  # a terminal that reports no size
    assert frames
    assert all(len(frame) <= width for frame in frames)
    if width >= 80:
        assert frames[-1].startswith("100%")
        assert (
            frames[-1]
            .rstrip()
            .endswith("epoch 2.0/20, 00:00 elapsed, 00:03 left, loss 1.250, test 0.7500")
        )


def test_bar_keeps_the_last_test_accuracy(open_terminal, monkeypatch):
    terminal = open_terminal(24, 80)
    monkeypatch.setattr("sys.stdout", terminal.file)
    progress = RunProgress(40)
    progress.evaluation({**train_record(10, 0.5), "split": "test", "accuracy": 0.75}, 3.0)
    assert " 25%" in terminal.frames()[-1]
    progress.train(train_record(20, 1.0), 3.0)
    progress.close()
    last = terminal.frames()[-1]
    assert " 50%" in last
    assert "left, loss 1.250, test 0.7500" in last


@pytest.mark.parametrize("activity", ["compiling", "evaluating"])
def test_bar_shows_what_the_run_does(activity, open_terminal, monkeypatch, capsys):
    terminal = open_terminal(24, 80)
    monkeypatch.setattr("sys.stdout", terminal.file)
    progress = RunProgress(40, 20)
    progress.resume(10)
    progress.show(activity)
    frame = terminal.frames()[-1].rstrip()
    assert frame.startswith(" 25%")
    assert frame.endswith(f"epoch 5.0/20, 00:00 elapsed, {activity}")
    progress.close()


def test_longest_times_fit_into_80_columns(open_terminal, monkeypatch, clock):
    terminal = open_terminal(24, 80)
    monkeypatch.setattr("sys.stdout", terminal.file)
    progress = RunProgress(40, 300)
    clock[0] += 3600 * 30
    progress.train(train_record(40, 300.0), 3600 * 99)
    record = {**train_record(40, 300.0), "split": "validation", "accuracy": 0.75}
    progress.evaluation(record, 3600 * 99)
    frame = terminal.frames()[-1].rstrip()
    assert len(frame) <= 80
    assert frame.endswith(
        "epoch 300.0/300, 30:00:00 elapsed, 99:00:00 left, loss 1.250, val 0.7500"
    )
    progress.close()


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
    meter.update(2, "text", force=True)
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


def test_run_progress_prints_lines_to_a_pipe(capsys, clock):
    progress = RunProgress(40, 2)
    clock[0] += 61.0
    show_run(progress)
    progress.print("the end")
    assert capsys.readouterr().out.splitlines() == [
        " 25%, epoch 0.5/2, step 10/40, 01:01 elapsed, 00:03 left: "
        "loss 1.250, accuracy 0.500, 1,234 examples/s, test 0.7500",
        "100%, epoch 2.0/2, step 40/40, 01:01 elapsed, 00:03 left: "
        "loss 1.250, accuracy 0.500, 1,234 examples/s, test 0.7500",
        "the end",
    ]


def test_run_progress_counts_resumed_steps(capsys):
    progress = RunProgress(40)
    progress.resume(30)
    progress.evaluation({**train_record(30, 1.5), "split": "validation"}, None)
    assert capsys.readouterr().out == (
        " 75%, epoch 1.5, step 30/40, 00:00 elapsed: validation 0.5000\n"
    )


@pytest.mark.parametrize(
    ("seconds", "steps"),
    [
        (1.0, [50, 100]),  # the end of each epoch
        (2.0, [30, 50, 80, 100]),  # and every 60 seconds
    ],
)
def test_run_progress_prints_each_epoch_and_each_minute(seconds, steps, capsys, clock):
    progress = RunProgress(100)
    for step in range(1, 101):
        clock[0] += seconds
        progress.train(train_record(step, step / 50), 0.0)
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split("step ")[1].split("/")[0]) for line in lines] == steps


def test_line_of_an_epoch_waits_for_its_evaluation(capsys):
    progress = RunProgress(40)
    progress.train(train_record(20, 1.0), 0.0, evaluates=True)
    assert capsys.readouterr().out == ""
    progress.evaluation({**train_record(20, 1.0), "split": "test"}, 0.0)
    assert capsys.readouterr().out.count("\n") == 1


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
    assert throughput.remaining(1, 0) is None
    for _ in range(2):
        clock[0] += 1.0
        throughput.step(10)
    assert throughput.lap() == 10.0
    clock[0] += 7.0
    assert throughput.pause(4) == 7.0
    clock[0] += 4.0
    throughput.step(10)
    assert throughput.lap() == 2.5
    assert throughput.overall == 30 / 6


def test_throughput_excludes_seconds_between_steps(clock):
    throughput = Throughput(steps=5)
    clock[0] += 30.0  # the first step compiles
    throughput.step(10)
    clock[0] += 1.0
    throughput.step(10)
    clock[0] += 12.0  # a profile is written
    throughput.exclude_seconds(12.0)
    clock[0] += 1.0
    throughput.step(10)
    assert throughput.lap() == 10.0
    assert throughput.overall == 10.0


def test_remaining_time_does_not_count_compilation(clock):
    throughput = Throughput(steps=100)
    clock[0] += 300.0  # the first step compiles
    throughput.step(10)
    for _ in range(9):
        clock[0] += 2.0
        throughput.step(10)
    throughput.lap()
    assert throughput.remaining(10, 9) == 90 * 2.0
    clock[0] += 60.0  # the first evaluation compiles: 20 examples take at most 4 seconds
    throughput.pause(20)
    assert throughput.remaining(10, 9) == 90 * 2.0 + 9 * 4.0
    for seconds in (1.0, 2.0):
        clock[0] += seconds
        throughput.pause(20)
    assert throughput.remaining(10, 9) == 90 * 2.0 + 9 * 1.5


def test_remaining_time_of_a_resumed_run_is_known_after_a_step(clock):
    throughput = Throughput(steps=100, examples=400, seconds=80.0)
    assert throughput.remaining(40, 0) is None
    clock[0] += 300.0  # the first step compiles
    throughput.step(10)
    assert throughput.remaining(41, 0) == 59 * 2.0


def test_rare_task_takes_at_most_its_share_of_the_time(clock):
    task = RareTask(seconds=1.0, share=0.1)
    spent = runs = 0
    for _ in range(400):
        clock[0] += 1
        if task.is_due():
            with task:
                clock[0] += 2
            spent, runs = spent + 2, runs + 1
    assert runs > 10
    assert spent / clock[0] <= 0.1 + 2 / clock[0]
