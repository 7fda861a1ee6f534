"""How far a training is, kept in a file, so that a start after a stop goes on from there."""

import hashlib
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization

from resflax.files import write_atomic
from resflax.train import TrainState

# Seconds between two writings, at least; as much is lost, at most, when a study is stopped.
SNAPSHOT_SECONDS = 20.0
_DIGEST = hashlib.sha256().digest_size


class SweepState(NamedTuple):
    """What a training of several members has after a step.

    Attributes:
      states: the members' states, stacked.
      history: an array `(3, members)` for each epoch that is done.
      window: the metrics of each step since then, arrays `(members,)`.
    """

    states: TrainState
    history: list[np.ndarray]
    window: list[Any]


class Snapshot:
    """The file of a training that is under way: a SHA-256, then msgpack.

    Args:
      file: in a folder that exists.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.last = file, time.monotonic()

    def keep(self, way: SweepState) -> None:
        """Writes the file, whole or not at all, if it was not written just now."""
        if time.monotonic() - self.last < SNAPSHOT_SECONDS:
            return
        states, window = jax.device_get((way.states, way.window))
        values = {
            "states": serialization.to_state_dict(states),
            "history": way.history,
            "window": window,
        }
        data = serialization.msgpack_serialize(values)
        write_atomic(self.file, hashlib.sha256(data).digest() + data)
        self.last = time.monotonic()

    def resume(self, first: TrainState) -> SweepState:
        """Where the file says the training is, bit for bit; at its `first` states if there is none.

        A file that cannot be read, or is of another network, is passed over with a line on stderr.
        """
        if self.file.exists():
            try:
                return _read(self.file.read_bytes(), first)
            except (OSError, ValueError, KeyError) as e:
                print(
                    f"warning: {self.file} passed over, that network starts anew: {e}",
                    file=sys.stderr,
                )
        return SweepState(first, [], [])

    def remove(self) -> None:
        """Removes the file, if there is one."""
        self.file.unlink(missing_ok=True)


def _read(data: bytes, first: TrainState) -> SweepState:
    """The way in the bytes of a file; `first` has the structure that its states must have."""
    if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
        raise ValueError("it is damaged")
    values = serialization.msgpack_restore(data[_DIGEST:])

    def checked(wanted: Any, found: Any) -> Any:
        if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
            raise ValueError(
                f"it holds {found.dtype}{found.shape} for {wanted.dtype}{wanted.shape}"
            )
        return jnp.array(found)  # a copy: the step takes the memory of its states

    states = serialization.from_state_dict(first, values["states"])
    return SweepState(jax.tree.map(checked, first, states), values["history"], values["window"])
