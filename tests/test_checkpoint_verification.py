"""Verification of older checkpoints in a background thread, during a run."""

import threading

import numpy as np
import pytest
from helpers.checkpoint_files import files_in, flip_middle_bit, step_names

from resflax.run import checkpointer as checkpointer_module
from resflax.run.checkpoint import Checkpoint
from resflax.run.checkpointer import Checkpointer
from resflax.run.manifest import CorruptCheckpointError, verify_manifest

SMALL = {"x": np.arange(4)}


def save_small(folder, *steps):
    checkpointer = Checkpointer(folder, 3)
    for step in steps:
        checkpointer.save(Checkpoint(step, SMALL, {}))
    checkpointer.close()


class VerificationSpy:
    """Replaces `verify_manifest`; it blocks the background thread until `resume` is set.

    Attributes:
      calls: step, prefix of the skipped files, and whether in the background, of each call.
    """

    def __init__(self, monkeypatch):
        self.calls, self.resume, self.reached = [], threading.Event(), threading.Event()
        monkeypatch.setattr(checkpointer_module, "verify_manifest", self.verify)

    def verify(self, folder, *, skip=""):
        background = threading.current_thread() is not threading.main_thread()
        self.calls.append((int(folder.name), skip, background))
        if background:
            self.reached.set()
            assert self.resume.wait(60)
        return verify_manifest(folder, skip=skip)


@pytest.fixture
def spy(monkeypatch):
    return VerificationSpy(monkeypatch)


def test_opening_reads_array_data_of_the_latest_only(tmp_path, spy):
    save_small(tmp_path, 1, 2, 3)
    checkpointer = Checkpointer(tmp_path, 3)
    assert spy.reached.wait(60)
    assert checkpointer.restore(SMALL).step == 3
    foreground = [(step, skip) for step, skip, background in spy.calls if not background]
    assert foreground == [(3, ""), (2, "state/"), (1, "state/")]
    spy.resume.set()
    checkpointer.close()
    assert [call[:2] for call in spy.calls if call[2]] == [(2, ""), (1, "")]
    assert checkpointer.warnings == []


def test_deleted_checkpoints_are_not_reported_as_corrupt(tmp_path, spy):
    save_small(tmp_path, 1, 2, 3)
    checkpointer = Checkpointer(tmp_path, 3)
    assert spy.reached.wait(60)
    checkpointer.save(Checkpoint(4, SMALL, {}))
    checkpointer.save(Checkpoint(5, SMALL, {}))
    checkpointer.wait()
    assert step_names(tmp_path) == ["3", "4", "5"]  # Orbax has deleted 1 and 2
    spy.resume.set()
    checkpointer.close()
    assert [call[:2] for call in spy.calls if call[2]] == [(2, ""), (1, "")]
    assert checkpointer.warnings == []
    assert step_names(tmp_path) == ["3", "4", "5"]


def test_corrupt_older_checkpoints_are_reported_at_a_save(tmp_path):
    folder = tmp_path / "checkpoints"
    save_small(folder, 1, 2, 3)
    flip_middle_bit(max(files_in(folder / "2" / "state"), key=lambda path: path.stat().st_size))
    checkpointer = Checkpointer(folder, 3)
    checkpointer._verifier.join(60)
    assert checkpointer.warnings == []
    checkpointer.save(Checkpoint(4, SMALL, {}))
    assert len(checkpointer.warnings) == 1
    assert "step 2 was skipped: state/" in checkpointer.warnings[0]
    checkpointer.close()
    assert len(checkpointer.warnings) == 1
    assert step_names(folder) == ["1", "3", "4"]  # none is deleted in place of the corrupt one
    assert step_names(tmp_path / "damaged") == ["2"]


def test_cancelled_verification_does_not_delay_close(tmp_path, spy):
    save_small(tmp_path, 1, 2, 3)
    checkpointer = Checkpointer(tmp_path, 3)
    assert spy.reached.wait(60)
    checkpointer.save(Checkpoint(4, SMALL, {}))
    checkpointer.close(cancel_verification=True)  # the thread is still blocked
    assert checkpointer._verifier.is_alive()
    verify_manifest(tmp_path / "4")
    spy.resume.set()
    checkpointer._verifier.join(60)
    assert [call[:2] for call in spy.calls if call[2]] == [(2, "")]


def test_steps_saved_again_are_not_taken_for_corrupt(tmp_path, monkeypatch, spy):
    """The thread may still verify checkpoints that restoring has moved away."""
    folder = tmp_path / "checkpoints"
    save_small(folder, 1, 2, 3)
    flip_middle_bit(max(files_in(folder / "2" / "state"), key=lambda path: path.stat().st_size))
    read = checkpointer_module.read_checkpoint

    def read_or_fail(folder, step, *args):
        if step == 3:
            raise CorruptCheckpointError("array x differs from the saved one")
        return read(folder, step, *args)

    monkeypatch.setattr(checkpointer_module, "read_checkpoint", read_or_fail)
    checkpointer = Checkpointer(folder, 3)
    verifier = checkpointer._verifier
    assert spy.reached.wait(60)  # the thread is about to verify step 2
    assert checkpointer.restore(SMALL).step == 1
    assert len(checkpointer.warnings) == 2
    spy.resume.set()
    verifier.join(60)
    checkpointer.save(Checkpoint(2, SMALL, {}))
    checkpointer.save(Checkpoint(3, SMALL, {}))
    checkpointer.close()
    assert len(checkpointer.warnings) == 2
    assert step_names(folder) == ["1", "2", "3"]
    assert step_names(tmp_path / "damaged") == ["2", "3"]
