"""The short form of `python tests/faults`: real runs, killed, asked to end, out of room."""

import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "faults"))
import disk
import kill
import stop


@pytest.mark.parametrize(("kind", "runs"), [("resident", 8), ("workers", 2)])
def test_killed_runs_end_bit_for_bit_as_one_that_was_not(kind, runs):
    """In the order of `kill.MOMENTS`, so that each comes."""
    found = kill.campaign(runs, kind, maximum=2)
    assert found.wrong == []
    assert found.identical == runs
    assert found.left_over == []
    assert sum(found.kills.values()) >= runs - 1  # one may come too late


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_end_does_so_and_goes_on(number):
    found = stop.campaign(1, number)
    assert found.wrong == []
    assert found.right == 1
    assert max(found.seconds) < 15


def test_without_room_it_ends_in_one_line_and_the_last_checkpoint_stands():
    assert disk.size_limited() == []
