"""States on disk, through Orbax, each with checksums."""

import contextlib
import dataclasses
import errno
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization
from orbax.checkpoint import checkpoint_managers

from resflax.errors import UserError
from resflax.files import quarantine
from resflax.run.manifest import (
    CorruptCheckpointError,
    leaf_checksums,
    verify_leaves,
    verify_manifest,
    write_manifest,
)
from resflax.train.state import TrainState

METRIC = "accuracy"
# What a disk says, wherever TensorStore and Orbax put it in their messages.
TOLD = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EIO)


class Saved(NamedTuple):
    """What a checkpoint holds, its arrays NumPy's.

    Attributes:
      state: all that the next step depends on.
      metadata: whatever else JSON can say.
      eval_batch_stats: the batch statistics that were evaluated, where they are not the state's; {} else.
    """

    state: TrainState
    metadata: dict[str, Any]
    eval_batch_stats: Any


def _alone() -> ocp.options.MultiprocessingOptions:
    """For a process that reads and writes without the others: each has the whole state."""
    number = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=number, active_processes={number})


def _options(keep: int) -> ocp.CheckpointManagerOptions:
    """To keep the last so many, and the best."""

    def best(metrics: dict[str, float]) -> float:
        return metrics[METRIC]

    policies = checkpoint_managers
    return ocp.CheckpointManagerOptions(
        create=False,
        cleanup_tmp_directories=True,
        save_root_metadata=False,
        best_fn=best,
        preservation_policy=policies.AnyPreservationPolicy(
            [
                policies.LatestN(keep),
                policies.BestN(get_metric_fn=best, n=1, keep_checkpoints_without_metrics=False),
            ]
        ),
        multiprocessing_options=_alone(),
    )


def _steps(folder: Path) -> list[int]:
    """The steps that a folder has something of, the last first."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def latest_valid_metadata(folder: Path) -> dict[str, Any] | None:
    """What was saved beside the last state that is whole; None if there is none."""
    for step in _steps(folder):
        with contextlib.suppress(CorruptCheckpointError):
            verify_manifest(folder / str(step))
            return dict(json.loads((folder / str(step) / "metadata" / "metadata").read_text()))
    return None


def _read(folder: Path, step: int, like: TrainState, leaves: Any) -> Saved:
    """What was saved at a step whose files are whole; those of others are not looked at."""
    eval_batch_stats = any(name.startswith("eval_batch_stats/") for name in leaves)
    tree = _tree(like, like.batch_stats if eval_batch_stats else {})
    args = ocp.args.Composite(
        state=ocp.args.StandardRestore(jax.tree.map(np.asarray, tree)),
        metadata=ocp.args.JsonRestore(),
    )
    handler = ocp.CompositeCheckpointHandler()
    try:
        with ocp.Checkpointer(handler, multiprocessing_options=_alone()) as checkpointer:
            found = checkpointer.restore(folder / str(step), args=args)
    except (ValueError, KeyError, TypeError) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise UserError(
            f"the checkpoint of step {step} is of another network or optimiser: {reason}"
        ) from e
    tree = jax.tree.map(np.asarray, found["state"])
    verify_leaves(tree, leaves)
    state = serialization.from_state_dict(like, tree["state"])
    return Saved(state, found["metadata"], tree["eval_batch_stats"])


def _tree(state: TrainState, eval_batch_stats: Any) -> dict[str, Any]:
    return {"state": serialization.to_state_dict(state), "eval_batch_stats": eval_batch_stats}


class Checkpoints:
    """The checkpoints of a run that goes on: the last `keep`, and that of the best accuracy.

    A step is saved while training goes on, under another name until it is whole, and then sealed
    with checksums. One that is not whole, or no longer, is put aside into `damaged`, with a
    line for `warnings`: what a run would go on from is passed over for the one before.

    Raises:
      UserError: if the folder cannot be written.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.warnings = folder.absolute(), list[str]()
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None
        self.last: int | None = None
        with self._told("be opened"):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.leaves = self._sound()
            self.manager = ocp.CheckpointManager(self.folder, options=_options(keep))

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Turns what goes wrong with files into one line."""
        try:
            yield
        except UserError:
            raise
        except (OSError, ValueError, RuntimeError) as e:
            text = str(e)
            known = [os.strerror(code) for code in TOLD if os.strerror(code) in text]
            reason = known[0] if known else " ".join(text.split())[:200]
            left = (
                f"the checkpoint of step {self.last} stands" if self.last else "there is no other"
            )
            raise UserError(
                f"the checkpoint in {self.folder} cannot {what}: {reason}: {left};"
                " make room, or choose another --workdir"
            ) from e

    def _sound(self) -> dict[str, str]:
        """The checksums of the last step that is whole; puts aside all that are not.

        The older ones as well: Orbax reads the accuracies of all to know the best.
        """
        sound: dict[int, dict[str, str]] = {}
        for step in _steps(self.folder):
            try:
                sound[step] = verify_manifest(self.folder / str(step))
            except CorruptCheckpointError as e:
                self._put_aside(step, str(e))
        self.last = max(sound, default=None)
        return sound[self.last] if self.last is not None else {}

    def _put_aside(self, step: int, reason: str) -> None:
        place = quarantine(self.folder / str(step), self.folder.parent / "damaged")
        self.warnings.append(
            f"the checkpoint of step {step} is passed over: {reason}; it lies in {place}"
        )

    def restore(self, like: TrainState) -> Saved | None:
        """The last state that is whole, of the structure of `like`; None if there is none.

        Raises:
          UserError: if it is of another structure.
        """
        while self.last is not None:
            try:
                with self._told("be read"):
                    return _read(self.folder, self.last, like, self.leaves)
            except CorruptCheckpointError as e:
                self._put_aside(self.last, str(e))
                self.leaves = self._sound()
                self.manager.reload()
        return None

    def save(self, saved: Saved, accuracy: float | None = None) -> None:
        """Begins to save under the state's step, when the one before is saved.

        Args:
          saved: of NumPy arrays, which nobody changes.
          accuracy: of an evaluation at this step, if there was one: the best is kept.

        Raises:
          UserError: if that one, or this, could not be.
        """
        self.wait()
        step, tree = int(saved.state.step), _tree(saved.state, saved.eval_batch_stats)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(tree), metadata=ocp.args.JsonSave(saved.metadata)
        )
        metrics = None if accuracy is None else {METRIC: accuracy}
        with self._told("be written"):
            self.manager.save(step, args=args, metrics=metrics, force=True)
        self.thread = threading.Thread(target=self._seal, args=(step, tree), name="seal")
        self.thread.start()

    def _seal(self, step: int, tree: Any) -> None:
        try:
            leaves = leaf_checksums(tree)
            self.manager.wait_until_finished()
            write_manifest(self.folder / str(step), leaves)
            self.last = step
        except BaseException as e:  # raised where the run waits
            self.error = e

    def wait(self) -> None:
        """Waits until what was begun is on disk, and sealed.

        Raises:
          UserError: if it is not.
        """
        if self.thread:
            self.thread.join()
            self.thread = None
        if self.error:
            error, self.error = self.error, None
            with self._told("be written"):
                raise error

    def close(self) -> None:
        """Waits, and ends Orbax's threads."""
        try:
            self.wait()
        finally:
            with contextlib.suppress(Exception):  # what went wrong was told by `wait`
                self.manager.close()


def restore(folder: Path, like: TrainState) -> TrainState:
    """The last state of a run's checkpoints that is whole, as it was evaluated; changes nothing.

    Raises:
      UserError: if there is none, or it is of another structure than `like`.
    """
    if not folder.is_dir():
        raise UserError(f"no checkpoint: there is no folder {folder}")
    reasons = []
    for step in _steps(folder):
        try:
            leaves = verify_manifest(folder / str(step))
            state, _, eval_batch_stats = _read(folder.absolute(), step, like, leaves)
            return dataclasses.replace(state, batch_stats=eval_batch_stats or state.batch_stats)
        except CorruptCheckpointError as e:
            reasons.append(f"; that of step {step} is damaged: {e}")
    raise UserError(f"no checkpoint in {folder}{''.join(reasons)}")
