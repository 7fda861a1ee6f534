"""The checkpoints of a training run: what they contain, and the state of the latest one."""

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
    """The checkpoints of a run, in the process that writes them.

    Make it before training: the fingerprint of the data is that of the start.

    Args:
      trainer: the trainer of the run.
      workdir: its directory.
    """

    def __init__(self, trainer: Trainer, workdir: Workdir) -> None:
        self._run, snapshots = trainer.run, trainer.snapshot_steps
        self._metadata = trainer.run.metadata | {"snapshots": list(snapshots)}
        self.checkpointer = Checkpointer(
            workdir.path / "checkpoints",
            trainer.config.checkpoint_max_to_keep,
            option=workdir.option,
            keep_steps=snapshots,
        )

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
        metadata = self._metadata | {
            "trainer_state": trainer_state.as_dict(),
            "ensemble": _describe_members(self._run, trainer_state),
        }
        tree = {"state": state, "eval_batch_stats": eval_batch_stats}
        self.checkpointer.save(Checkpoint(step, tree, metadata), accuracy)


def _describe_members(run: Run, trainer_state: TrainerState) -> dict[str, Any] | None:
    """Returns the number of members, their seeds, and those left out; None for one network."""
    if not is_ensemble(run.config):
        return None
    seeds, dropped = member_seeds(run.config), excluded_members(run, trainer_state)
    return {"size": run.size, "seeds": list(seeds), "dropped": dropped}


def restore_run(
    trainer: Trainer, checkpoints: RunCheckpoints | None
) -> tuple[int, TrainerState, TrainState] | None:
    """Restores the latest valid checkpoint in all processes, of which one reads it.

    Returns:
      Its step, and what it has of the host's and the devices' state; None if there is none.
    """
    template = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), trainer.run.abstract_state()
    )
    trees = {"state": template, "eval_batch_stats": template.batch_stats}
    saved = checkpoints.checkpointer.restore(trees) if checkpoints else None
    shared = broadcast_json(saved and [saved.step, saved.metadata["trainer_state"]])
    if not shared:
        return None
    state = broadcast_tree(saved.tree["state"] if saved else template)
    return shared[0], TrainerState(**shared[1]), state
