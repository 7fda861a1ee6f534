"""Restores the state of a run from its latest checkpoint."""

import jax
import numpy as np

from resflax.distributed.processes import broadcast_json, broadcast_tree
from resflax.run.checkpointer import Checkpointer
from resflax.run.trainer_state import TrainerState
from resflax.train.state import TrainState
from resflax.train.trainer import Trainer


def restore_latest(
    trainer: Trainer, checkpointer: Checkpointer | None
) -> tuple[int, TrainerState, TrainState] | None:
    """Restores the latest valid checkpoint in all processes, of which one reads it.

    Returns:
      Its step, and what it has of the host's and the devices' state; None if there is none.
    """
    template = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), trainer.run.abstract_state()
    )
    trees = {"state": template, "eval_batch_stats": template.batch_stats}
    saved = checkpointer.restore(trees) if checkpointer else None
    shared = broadcast_json(saved and [saved.step, saved.metadata["trainer_state"]])
    if not shared:
        return None
    state = broadcast_tree(saved.tree["state"] if saved else template)
    return shared[0], TrainerState(**shared[1]), state
