"""The program that runs a step of one network for all members of an ensemble."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from resflax.distributed.engines import Step
from resflax.kernels.materialize import materialize_on_cpu

MEMBER_AXIS = "member"


class MemberProgram:
    """A step of one network, compiled for all members of an ensemble.

    How the arrays of the second argument are split over the mesh says which of their axes, if any,
    is that of the members.

    Args:
      step: the step of one network.
      mesh: mesh with the axes "member" and "batch".
      method: how a device runs its members: "vmap" or "map".
      results: how the results are split over the mesh.
      updates_state: whether the results are `(state, metrics)`; the memory of the state is then
        reused.
    """

    def __init__(
        self,
        step: Step,
        mesh: Mesh,
        method: str,
        results: PartitionSpec,
        *,
        updates_state: bool = False,
    ) -> None:
        self._step, self._mesh, self._method = step, mesh, method
        self._results, self._updates_state = results, updates_state
        self._compiled: dict[Any, Any] = {}

    def __call__(self, state: Any, data: Any) -> Any:
        """Runs the step of every member; the first call for a layout of `data` compiles it."""
        return self._for(data)(state, data)

    def lower(self, state: Any, data: Any) -> Any:
        """Lowers the step; the arguments may be `jax.ShapeDtypeStruct`s with a sharding."""
        return self._for(data).lower(state, data)

    def _for(self, data: Any) -> Any:
        leaves, structure = jax.tree.flatten(data)
        specs = tuple(leaf.sharding.spec for leaf in leaves)
        if (structure, specs) not in self._compiled:
            self._compiled[structure, specs] = self._compile(structure, specs)
        return self._compiled[structure, specs]

    def _compile(self, structure: Any, specs: tuple[PartitionSpec, ...]) -> Any:
        axes = [spec.index(MEMBER_AXIS) if MEMBER_AXIS in spec else None for spec in specs]

        def run(state: Any, data: Any) -> Any:
            def step(state: Any, leaves: list[Any]) -> Any:
                return self._step(state, jax.tree.unflatten(structure, leaves))

            updates, leaves = self._updates_state, jax.tree.leaves(data)
            return _run_members(step, state, leaves, axes, self._method, updates_state=updates)

        # Without `check_vma`: a step does not reduce its results over a batch axis of one device,
        # which it is made without, and the check does not except it.
        mapped = jax.shard_map(
            run,
            mesh=self._mesh,
            in_specs=(PartitionSpec(MEMBER_AXIS), jax.tree.unflatten(structure, specs)),
            out_specs=self._results,
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=0 if self._updates_state else ())


def _run_members(
    step: Callable[[Any, list[Any]], Any],
    state: Any,
    leaves: list[Any],
    axes: list[int | None],
    method: str,
    *,
    updates_state: bool,
) -> Any:
    """Runs a step for each member of one device.

    Args:
      step: `(state, leaves) -> results` of one member.
      state: states of the members, along the first axis of each array.
      leaves: arrays of the batch.
      axes: the member axis of each of them; None for one that the members share.
      method: "vmap" or "map".
      updates_state: whether the results are `(state, metrics)`, and the memory of the state may be
        reused.

    Returns:
      The results, with the member axis first.
    """
    if len(jax.tree.leaves(state)[0]) == 1:
        first = [
            leaf if axis is None else lax.index_in_dim(leaf, 0, axis, keepdims=False)
            for leaf, axis in zip(leaves, axes, strict=True)
        ]
        results = step(jax.tree.map(lambda x: x[0], state), first)
        return jax.tree.map(lambda x: jnp.expand_dims(x, 0), results)
    if method == "vmap":
        return jax.vmap(step, in_axes=(0, axes))(state, leaves)
    own = [
        None if axis is None else jnp.moveaxis(leaf, axis, 0)
        for leaf, axis in zip(leaves, axes, strict=True)
    ]

    def run_one(state: Any, own: list[Any]) -> Any:
        return step(state, [x if y is None else y for x, y in zip(leaves, own, strict=True)])

    if updates_state:
        return _update_in_turn(run_one, state, own)
    return lax.map(lambda member: run_one(*member), (state, own))


def _update_in_turn(step: Step, states: Any, data: list[Any]) -> tuple[Any, Any]:
    """Runs a training step for one member after another and updates the stacked states in place.

    The states are the carry of the loop, so that they need no second buffer. Each member's state is
    read once, before anything is updated: if operations read it from the stacked arrays again, XLA
    would copy these for every member.

    Args:
      step: `(state, data) -> (state, metrics)` of one member.
      states: states of the members, along the first axis of each array.
      data: batches of the members, likewise.
    """

    def update(states: Any, inputs: tuple[Array, list[Any]]) -> tuple[Any, Any]:
        k, own = inputs
        state = jax.tree.map(lambda x: _read(lax.dynamic_index_in_dim(x, k, 0, False)), states)
        new, metrics = step(state, own)
        put = partial(lax.dynamic_update_index_in_dim, index=k, axis=0)
        return jax.tree.map(put, states, new), metrics

    members = len(jax.tree.leaves(states)[0])
    return lax.scan(update, states, (jnp.arange(members), data))


def _read(x: Array) -> Array:
    """Returns `x`, which XLA:CPU's fusion then does not read again in each consumer."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return lax.platform_dependent(x, cpu=materialize_on_cpu, default=lambda x: x)
