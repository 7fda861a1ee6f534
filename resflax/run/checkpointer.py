"""Saves and restores the checkpoints of a run, and verifies them in the background."""

import contextlib
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from flax import serialization
from orbax.checkpoint import checkpoint_managers

from resflax.files import disk_errors_as_user_error, quarantine
from resflax.run.checkpoint import (
    ARRAYS,
    METADATA,
    Checkpoint,
    list_steps,
    read_checkpoint,
    single_process,
)
from resflax.run.manifest import (
    CorruptCheckpointError,
    leaf_checksums,
    verify_manifest,
    write_manifest,
)

# Suffix of the directory of a checkpoint while a new one of the same step is written.
REPLACED = ".replaced"
METRIC, STEP = "accuracy", "step"


def _manager_options(max_to_keep: int, keep_steps: Sequence[int]) -> ocp.CheckpointManagerOptions:
    """Keeps the last `max_to_keep` checkpoints, the best one and those of `keep_steps`.

    Of equally accurate checkpoints the first one is the best.
    """

    def accuracy(metrics: dict[str, float]) -> Any:
        return metrics[METRIC], -metrics.get(STEP, 0)

    policies = checkpoint_managers
    best = policies.BestN(get_metric_fn=accuracy, n=1, keep_checkpoints_without_metrics=False)
    rules = [policies.LatestN(max_to_keep), best, policies.CustomSteps(keep_steps)]
    return ocp.CheckpointManagerOptions(
        create=False,
        cleanup_tmp_directories=True,
        save_root_metadata=False,
        best_fn=accuracy,
        preservation_policy=policies.AnyPreservationPolicy(rules),
        multiprocessing_options=single_process(),
    )


class Checkpointer:
    """Saves and restores the checkpoints of a run.

    Keeps the last `max_to_keep`, the best, and those at `keep_steps`.

    Saving is asynchronous: the directory has a temporary name until it is complete, then gets its
    manifest. On opening, the latest checkpoint is verified in full, the array data of older ones in
    the background. Corrupt checkpoints are moved to `damaged/` next to the folder, with a line in
    `warnings`; restoring takes the latest valid one.

    Raises:
      UserError: if the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        max_to_keep: int,
        *,
        keep_steps: Sequence[int] = (),
        option: str = "--workdir",
    ) -> None:
        self.folder, self.option, self.warnings = folder.absolute(), option, list[str]()
        self.latest: int | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        with self._disk_errors("opened"):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._restore_replaced()
            self._checksums = self._find_latest()
            self._manager = ocp.CheckpointManager(
                self.folder, options=_manager_options(max_to_keep, keep_steps)
            )
        self._start_verification()

    @contextlib.contextmanager
    def _disk_errors(self, verb: str) -> Iterator[None]:
        def advice() -> str:
            intact = f"the checkpoint at step {self.latest} is intact"
            return (
                f"{intact if self.latest else 'there is no earlier one'};"
                f" make room, or choose another {self.option}"
            )

        what = f"the checkpoint in {self.folder} cannot be {verb}"
        errors = (OSError, ValueError, RuntimeError)
        with disk_errors_as_user_error(what, advice, errors=errors):
            yield

    def _restore_replaced(self) -> None:
        """Restores the checkpoints whose replacement a killed process did not complete."""
        for replaced in self.folder.glob(f"*{REPLACED}"):
            folder = replaced.with_suffix("")
            try:
                verify_manifest(folder)
                shutil.rmtree(replaced)
            except CorruptCheckpointError:
                shutil.rmtree(folder, ignore_errors=True)
                replaced.rename(folder)

    def _find_latest(self) -> dict[str, str]:
        """Finds the latest valid step; returns the checksums of its arrays.

        Only the metadata of older steps are verified: Orbax reads all accuracies to find the best.
        """
        self.latest, checksums = None, dict[str, str]()
        for step in list_steps(self.folder):
            try:
                if self.latest is None:
                    checksums = verify_manifest(self.folder / str(step))
                    self.latest = step
                else:
                    verify_manifest(self.folder / str(step), skip=f"{ARRAYS}/")
            except CorruptCheckpointError as e:
                self._quarantine(step, str(e))
        return checksums

    def _quarantine(self, step: int, reason: str) -> None:
        target = quarantine(self.folder / str(step), self.folder.parent / "damaged")
        self.warnings.append(
            f"the checkpoint at step {step} was skipped: {reason}; moved to {target}"
        )

    def _start_verification(self) -> None:
        """Starts to verify the array data of the older checkpoints in a thread.

        A thread that was cancelled earlier has another dictionary, which is ignored.
        """
        self._cancelled, self._corrupt = threading.Event(), dict[int, str]()
        older = [step for step in list_steps(self.folder) if step != self.latest]
        self._verifier = threading.Thread(
            target=self._verify,
            args=(older, self._cancelled, self._corrupt),
            name="verify",
            daemon=True,
        )
        self._verifier.start()

    def _verify(
        self, steps: Sequence[int], cancelled: threading.Event, corrupt: dict[int, str]
    ) -> None:
        """Verifies checkpoints; adds the corrupt ones to `corrupt`, with the reason."""
        for step in steps:
            if cancelled.is_set():
                return
            try:
                verify_manifest(self.folder / str(step))
            except CorruptCheckpointError as e:
                corrupt[step] = str(e)

    def _quarantine_corrupt(self) -> None:
        """Quarantines the corrupt checkpoints found in the background; call it between saves."""
        # The thread may still add to the dictionary: take the items out one at a time.
        corrupt = [self._corrupt.popitem() for _ in range(len(self._corrupt))]
        existing = list_steps(self.folder)
        # A checkpoint that Orbax has deleted since then is not corrupt.
        corrupt = [(step, reason) for step, reason in corrupt if step in existing]
        for step, reason in corrupt:
            self._quarantine(step, reason)
        if corrupt:
            self._manager.reload()

    def restore(self, template: dict[str, Any]) -> Checkpoint | None:
        """Reads the latest valid checkpoint; None if there is none.

        Args:
          template: dictionary of pytrees with the structure, shapes and dtypes of the saved ones.

        Raises:
          UserError: if the checkpoint has another structure.
        """
        while self.latest is not None:
            try:
                with self._disk_errors("read"):
                    return read_checkpoint(self.folder, self.latest, template, self._checksums)
            except CorruptCheckpointError as e:
                # These steps may be saved again: the thread must not report the new checkpoints.
                self._cancelled.set()
                self._quarantine(self.latest, str(e))
                self._checksums = self._find_latest()
                self._manager.reload()
                self._start_verification()
        return None

    def save(self, checkpoint: Checkpoint, accuracy: float | None = None) -> None:
        """Starts saving, once the previous save has finished; replaces a checkpoint of this step.

        Args:
          checkpoint: its arrays must not change before `wait` returns.
          accuracy: of the evaluation at this step, if there was one; the best checkpoint is kept.

        Raises:
          UserError: if the previous checkpoint or this one cannot be written.
        """
        self.wait()
        step, tree = checkpoint.step, serialization.to_state_dict(checkpoint.tree)
        args = ocp.args.Composite(
            **{
                ARRAYS: ocp.args.StandardSave(tree),
                METADATA: ocp.args.JsonSave(checkpoint.metadata),
            }
        )
        metrics = None if accuracy is None else {METRIC: accuracy, STEP: step}
        with self._disk_errors("written"):
            self._quarantine_corrupt()
            if step in list_steps(self.folder):
                # Kept until the new one is complete: there may be no other.
                (self.folder / str(step)).rename(self.folder / f"{step}{REPLACED}")
                self._manager.reload()
            self._manager.save(step, args=args, metrics=metrics, force=True)
        self._thread = threading.Thread(target=self._finish, args=(step, tree), name="manifest")
        self._thread.start()

    def _finish(self, step: int, tree: Any) -> None:
        """Writes the manifest when Orbax is done, in a thread."""
        try:
            checksums = leaf_checksums(tree)
            self._manager.wait_until_finished()
            write_manifest(self.folder / str(step), checksums)
            self.latest = step
            shutil.rmtree(self.folder / f"{step}{REPLACED}", ignore_errors=True)
        except BaseException as e:  # raised by `wait`
            self._error = e

    def wait(self) -> None:
        """Waits until the last save is on disk, with its manifest.

        Raises:
          UserError: if it failed.
        """
        if self._thread:
            self._thread.join()
            self._thread = None
        if self._error:
            error, self._error = self._error, None
            with self._disk_errors("written"):
                raise error

    def close(self, *, cancel_verification: bool = False) -> None:
        """Waits for the last save and, unless cancelled, for the background verification."""
        try:
            if cancel_verification:
                self._cancelled.set()
            self.wait()
            if not cancel_verification:
                self._verifier.join()
                with self._disk_errors("moved"):
                    self._quarantine_corrupt()
        finally:
            with contextlib.suppress(Exception):  # `wait` has already reported what went wrong
                self._manager.close()
