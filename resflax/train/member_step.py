"""A training step with hyperparameters from the state, such as that of an ensemble's member."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from resflax.distributed import Engine
from resflax.train.choice import Choice
from resflax.train.ensemble import Hyperparameters
from resflax.train.metrics import Metrics
from resflax.train.nonfinite import max_in_row, revert_update
from resflax.train.state import TrainState
from resflax.train.step import TrainStep
from resflax.train.step_inputs import Batch


def make_member_step(
    make_step: Callable[[Hyperparameters], TrainStep],
    values: Hyperparameters,
    differing: Mapping[str, tuple[float, ...]],
) -> TrainStep:
    """Makes a step whose hyperparameters come from the state where members differ.

    So does the number of reductions of the learning rate, if the state has one.

    Args:
      make_step: builds a step from numbers or from `Choice`s.
      values: the values that all members share.
      differing: values of all members where they differ, by their name in `TrainState.member`.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        own: dict[str, Any] = {
            name: Choice(state.member[name], tuple(dict.fromkeys(row)))
            for name, row in differing.items()
        }
        if not isinstance(state.reductions, dict):
            own["reductions"] = state.reductions
        return make_step(values._replace(**own))(state, batch)

    return step


def freeze_diverged(step: TrainStep, config: ConfigDict) -> TrainStep:
    """Wraps a step so that a member whose updates are not finite keeps its last finite state.

    An update that is not finite is discarded. After as many consecutive ones as a run alone stops
    at (`max_in_row`), the member has diverged: it computes on, since all members are one program,
    but its state no longer changes, except for its step.

    Args:
      step: its metrics have "finite", see `check_finite`.
      config: of the run.
    """
    limit = max_in_row(config)

    def frozen_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        new, metrics = step(state, batch)
        finite, old = jnp.all(metrics["finite"]), state.member
        trains = old["diverged_at"] == 0
        new = revert_update(finite & trains, new, state)
        in_row = jnp.where(finite, 0, old["in_row"] + 1)
        diverged_at = jnp.where(trains & (in_row >= limit), new.step, old["diverged_at"])
        member = {**old, "in_row": in_row, "diverged_at": diverged_at}
        return dataclasses.replace(new, member=member), metrics

    return frozen_step


def mark_diverged(state: TrainState, engine: Engine, diverged_at: Sequence[int]) -> TrainState:
    """Returns the state of all members with the steps at which they diverged; 0 if they train.

    For members that an evaluation finds: `freeze_diverged` then keeps their states.

    Args:
      state: on the devices of `engine`.
      engine: the engine of the run.
      diverged_at: step of each member.
    """
    steps = engine.put_state(np.array(diverged_at, np.int32))
    return dataclasses.replace(state, member={**state.member, "diverged_at": steps})
