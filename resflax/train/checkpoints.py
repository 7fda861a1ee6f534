"""The checkpoints of a training run: what they contain, when they are saved, the latest one."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from resflax.distributed.processes import broadcast_json, broadcast_tree
from resflax.run.checkpoint import Checkpoint
from resflax.run.checkpointer import Checkpointer
from resflax.run.trainer_state import TrainerState
from resflax.run.workdir import Workdir
from resflax.train.ensemble import is_ensemble, member_seeds
from resflax.train.monitor import excluded_members
from resflax.train.run import Run
from resflax.train.state import TrainState
from resflax.train.trainer import Trainer


class RunCheckpoints:
    """The checkpoints of a run, which the main process writes; all processes take part.

    Make it before training: the fingerprint of the data is that of the start.

    Args:
      trainer: the trainer of the run.
      workdir: its directory.
      report: prints a line.

    Attributes:
      saved_step: step of the latest checkpoint; -1 before the first.
    """

    def __init__(self, trainer: Trainer, workdir: Workdir, report: Callable[[str], None]) -> None:
        self._run, self._config, self._report = trainer.run, trainer.config, report
        self._snapshots = trainer.snapshot_steps
        self._metadata = trainer.run.metadata | {"snapshots": list(self._snapshots)}
        self.saved_step, self._saved_at = -1, time.monotonic()
        self._checkpointer: Checkpointer | None = None
        if workdir.writes:
            self._checkpointer = Checkpointer(
                workdir.path / "checkpoints",
                trainer.config.checkpoint_max_to_keep,
                option=workdir.option,
                keep_steps=self._snapshots,
            )

    def restore(self) -> tuple[TrainerState, TrainState] | None:
        """Restores the latest valid checkpoint in all processes, of which one reads it.

        Returns:
          What it has of the host's and the devices' state; None if there is none.
        """
        template = jax.tree.map(
            lambda leaf: np.zeros(leaf.shape, leaf.dtype), self._run.abstract_state()
        )
        trees = {"state": template, "eval_batch_stats": template.batch_stats}
        saved = self._checkpointer.restore(trees) if self._checkpointer else None
        self._report_warnings()
        shared = broadcast_json(saved and [saved.step, saved.metadata["trainer_state"]])
        if not shared:
            return None
        self.saved_step = shared[0]
        return TrainerState(**shared[1]), broadcast_tree(saved.tree["state"] if saved else template)

    def is_due(self, step: int, *, check_time: bool) -> bool:
        """Returns whether the config has a checkpoint at this step, the same for all processes.

        Args:
          step: number of steps taken.
          check_time: also compare the time since the last checkpoint. With several processes, this
            needs a broadcast.
        """
        every = self._config.checkpoint_every_steps
        if step in self._snapshots or (every and step % every == 0):
            return True
        if not check_time:
            return False
        minutes = (time.monotonic() - self._saved_at) / 60
        return broadcast_json(bool(0 < self._config.checkpoint_every_minutes <= minutes))

    def save(
        self,
        step: int,
        state: TrainState,
        eval_batch_stats: Any,
        trainer_state: TrainerState,
        accuracy: float | None,
    ) -> None:
        """Starts to save a checkpoint, after the previous one is on disk.

        Args:
          step: number of steps taken.
          state: as NumPy arrays.
          eval_batch_stats: precise batch statistics of the evaluation at this step, or {}.
          trainer_state: the host-side state.
          accuracy: of the evaluation at this step, if there was one.
        """
        if self._checkpointer:
            metadata = self._metadata | {
                "trainer_state": trainer_state.as_dict(),
                "ensemble": _describe_members(self._run, trainer_state),
            }
            tree = {"state": state, "eval_batch_stats": eval_batch_stats}
            self._checkpointer.save(Checkpoint(step, tree, metadata), accuracy)
            self._report_warnings()
        self.saved_step, self._saved_at = step, time.monotonic()

    def wait(self) -> None:
        """Waits until the latest checkpoint is on disk."""
        if self._checkpointer:
            self._checkpointer.wait()

    def close(self, *, cancel_verification: bool = False) -> None:
        """Waits for the latest checkpoint and, unless cancelled, for the verification of others."""
        if self._checkpointer:
            self._checkpointer.close(cancel_verification=cancel_verification)
            self._report_warnings()

    def _report_warnings(self) -> None:
        """Prints the checkpointer's warnings, which can also come from its background thread."""
        if self._checkpointer:
            warnings, self._checkpointer.warnings = self._checkpointer.warnings, []
            for warning in warnings:
                self._report(f"warning: {warning}")


def _describe_members(run: Run, trainer_state: TrainerState) -> dict[str, Any] | None:
    """Returns the number of members, their seeds, and those left out; None for one network."""
    if not is_ensemble(run.config):
        return None
    seeds, dropped = member_seeds(run.config), excluded_members(run, trainer_state)
    return {"size": run.size, "seeds": list(seeds), "dropped": dropped}
