"""States on disk, through Orbax."""

from pathlib import Path

import jax
import orbax.checkpoint as ocp
from flax import serialization

from resflax.errors import UserError
from resflax.train.state import TrainState


def save(folder: Path, state: TrainState) -> None:
    """Saves a state under its step; returns when it is on disk."""
    # This process alone: of several, each has the whole state and one saves it.
    here = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}
    )
    options = ocp.CheckpointManagerOptions(create=False, multiprocessing_options=here)
    folder.mkdir(parents=True, exist_ok=True)
    with ocp.CheckpointManager(folder.absolute(), options=options) as manager:
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
