"""A step that returns its batch as metrics, to see what an input pipeline delivers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from resflax.train.ensemble import stack_states
from resflax.train.state import TrainState


def counting_step(state, batch):
    """Returns the state with one more step, and the batch."""
    return dataclasses.replace(state, step=state.step + 1), batch


def member_counting_step(engine):
    """Returns `counting_step` for an `EnsembleEngine`: each device returns the whole batch."""

    def step(state, batch):
        state, batch = counting_step(state, batch)
        return state, jax.lax.all_gather(batch, engine.axis_name, tiled=True)

    return step if engine.axis_name else counting_step


def collect_batches(engine, step_fn, start, count):
    """Runs a step function made of `counting_step`; returns its batches, the rows in order.

    With several processes, the rows are those of this process.
    """
    state = engine.put_state(TrainState(jnp.int32(start), jnp.uint32(0), {}, {}, {}))
    batches = []
    for _ in range(count):
        state, batch = step_fn(state)
        batches.append(jax.tree.map(lambda x: _local_rows(engine, x), batch))
    return batches


def collect_member_batches(engine, step_fn, start, count):
    """Runs a step function made of `member_counting_step`; returns whole batches with members."""
    states = [TrainState(jnp.int32(start), jnp.uint32(0), {}, {}, {})] * engine.size
    state, batches = engine.put_state(stack_states(states)), []
    for _ in range(count):
        state, batch = step_fn(state)
        batches.append(engine.to_host(batch))
    return batches


def _local_rows(engine, array):
    if engine.axis_name:  # pmap returns this process's rows, by device
        return np.asarray(array).reshape(-1, *array.shape[2:])
    return np.asarray(array)[engine.local_slice(len(array))]  # the mesh replicates metrics
