"""States on disk, through Orbax."""

from pathlib import Path

import orbax.checkpoint as ocp
from flax import serialization

from resflax.errors import UserError
from resflax.train.state import TrainState


def save(folder: Path, state: TrainState) -> None:
    """Saves a state under its step; returns when it is on disk."""
    with ocp.CheckpointManager(folder.absolute()) as manager:
        tree = serialization.to_state_dict(state)
        manager.save(int(state.step), args=ocp.args.StandardSave(tree))


def restore(folder: Path, like: TrainState) -> TrainState:
    """The last state that was saved, with the structure, shapes and dtypes of `like`.

    Raises:
      UserError: if there is none.
    """
    if not folder.is_dir():
        raise UserError(f"no checkpoint: there is no folder {folder}")
    with ocp.CheckpointManager(folder.absolute()) as manager:
        step = manager.latest_step()
        if step is None:
            raise UserError(f"no checkpoint in {folder}")
        target = serialization.to_state_dict(like)
        tree = manager.restore(step, args=ocp.args.StandardRestore(target))
    return serialization.from_state_dict(like, tree)
