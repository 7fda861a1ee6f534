"""A short version of `python tests/faults`: real runs that are killed, stopped, or out of space."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "faults"))
import disk  # noqa: E402
import kill  # noqa: E402
import sessions  # noqa: E402
import stop  # noqa: E402


def run_campaign(*arguments):
    command = [sys.executable, str(ROOT / "tests" / "faults"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(("arguments", "status"), [((), 2), (("--help",), 0)])
def test_usage_starts_no_campaign(arguments, status):
    done = run_campaign(*arguments)
    assert done.returncode == status
    assert done.stdout.startswith("usage: tests/faults")
    assert all(f"    {name} " in done.stdout for name in ("kill", "stop", "flip", "disk", "lost"))
    assert done.stderr == ""


def test_unknown_campaigns_and_counts_are_errors():
    for arguments in (("kil",), ("kill", "--runs=many"), ("disk", "--runs=2")):
        done = run_campaign(*arguments)
        assert done.returncode == 2
        assert "usage: tests/faults" in done.stderr


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("pipeline", "runs"), [("device", 2), ("device", 8), ("workers", 2), ("ensemble", 2)]
)
def test_killed_runs_finish_bit_identically(pipeline, runs):
    """Eight runs are enough for each of `kill.MOMENTS`."""
    report = kill.campaign(runs, pipeline, max_kills=2)
    assert report.errors == []
    assert report.identical == runs
    assert report.remaining == []
    assert report.kills.total() >= runs - 1  # one may finish before its kill


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_runs_finish_bit_identically(number):
    report = stop.campaign(1, number)
    assert report.errors == []
    assert report.passed == 1
    assert max(report.seconds) < 15


@pytest.mark.slow
@pytest.mark.multiprocess
def test_full_disk_is_one_error_and_keeps_a_checkpoint():
    assert disk.limited_file_size() == []


def processes_with(name, text):
    """Returns the processes whose /proc entry `name` contains a text."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if text.encode() in (path / name).read_bytes():
                found.append(int(path.name))
    return found


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.multiprocess
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_ended_campaigns_leave_no_process(number, tmp_path):
    tmpdir = f"TMPDIR={tmp_path}"  # identifies the processes
    campaign = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "faults"), "kill", "--runs=1"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_until(lambda: processes_with("cmdline", f"--workdir={tmp_path}"))
    # The campaign, its guardian and the trainer.
    wait_until(lambda: len(processes_with("environ", tmpdir)) >= 3)
    time.sleep(0.3)  # the guardian learns about the trainer right after its start
    campaign.send_signal(number)
    status = campaign.wait(30)
    assert status == (-number if number == signal.SIGKILL else 128 + number)
    wait_until(lambda: not processes_with("environ", tmpdir))
    assert list(tmp_path.rglob("results.json")) == []  # the trainer did not finish


@pytest.mark.multiprocess
def test_sessions_end_with_the_children_of_their_processes():
    running = sessions.Sessions()
    child = "import time; time.sleep(600)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = running.start([sys.executable, "-c", parent])
    wait_until(lambda: len(sessions.session_members(process.pid)) == 2)
    running.end()
    assert process.wait(30) == -signal.SIGKILL
    running.remove(process)
    assert sessions.session_members(process.pid) == []
    with pytest.raises(RuntimeError, match="the campaign is ending"):
        running.start([sys.executable, "-c", child])
    running.close()
