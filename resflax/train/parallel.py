"""Where a step runs: the only file that says pmap, mesh or sharding.

An engine takes the same pure step to all local devices: the state whole on each, the batch split.
The two differ in how the devices come to share batch statistics and gradients: under `pmap` the
step says so itself, by `axis_name`; under `jit` over a mesh the compiler sees the global batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from resflax.errors import UserError, unknown

AXIS = "batch"


@dataclass(frozen=True)
class Engine:
    """How to run a step on several devices.

    Attributes:
      devices: that share the batch.
      axis_name: to make the step with; None if the step sees the global batch.
      replicate: puts a copy of a tree on each device.
      fetch: one copy of what `replicate` made or a compiled step returned, as NumPy arrays.
      split: puts a part of a batch (a tree of arrays with a leading batch axis) on each device;
        raises `UserError` if the parts would not be equal.
      compile_train: a step `(state, batch) -> (state, metrics)`; the state's memory is reused.
      compile_eval: a step `(state, batch) -> metrics`.
      split_steps: puts a part of each batch of rows `(steps, batch)` on each device.
      compile_resident: a step `(state, data) -> (state, metrics)`, whose data hold "whole" and
        "first", from `replicate`, and "order", from `split_steps`.
    """

    devices: Sequence[Any]
    axis_name: str | None
    replicate: Callable[[Any], Any]
    fetch: Callable[[Any], Any]
    split: Callable[[Any], Any]
    compile_train: Callable[[Callable[..., Any]], Callable[..., Any]]
    compile_eval: Callable[[Callable[..., Any]], Callable[..., Any]]
    split_steps: Callable[[Any], Any]
    compile_resident: Callable[[Callable[..., Any]], Callable[..., Any]]

    def check_batch(self, batch_size: int) -> None:
        """Raises `UserError` if the devices cannot share a batch of that size evenly."""
        _check_batch(batch_size, len(self.devices))


def _check_batch(batch_size: int, count: int) -> None:
    if batch_size % count:
        below, above = batch_size // count * count, -(-batch_size // count) * count
        fits = f"{below} or {above}" if below else f"{above}"
        raise UserError(f"batch_size {batch_size} does not divide by {count} devices: use {fits}")


def _check_leaves(batch: Any, count: int) -> Any:
    for leaf in jax.tree.leaves(batch):
        _check_batch(len(leaf), count)
    return batch


def _pmap_engine(devices: Sequence[Any]) -> Engine:
    count = len(devices)
    sharding = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS))

    def replicate(tree: Any) -> Any:
        stacked = jax.tree.map(lambda x: np.broadcast_to(x, (count, *np.shape(x))), tree)
        return jax.device_put(stacked, sharding)

    def split(batch: Any) -> Any:
        _check_leaves(batch, count)
        parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
        return jax.device_put(parts, sharding)

    def split_steps(rows: Any) -> Any:
        parts = jax.tree.map(lambda x: x.reshape(len(x), count, -1).swapaxes(0, 1), rows)
        return jax.device_put(parts, sharding)

    return Engine(
        devices=devices,
        axis_name=AXIS,
        replicate=replicate,
        fetch=lambda tree: jax.device_get(jax.tree.map(lambda x: x[0], tree)),
        split=split,
        compile_train=lambda step: jax.pmap(step, AXIS, devices=devices, donate_argnums=0),
        compile_eval=lambda step: jax.pmap(step, AXIS, devices=devices),
        split_steps=split_steps,
        compile_resident=lambda step: jax.pmap(step, AXIS, devices=devices, donate_argnums=0),
    )


def _mesh_engine(devices: Sequence[Any]) -> Engine:
    # `Mesh` makes Auto axes; `jax.make_mesh` makes Explicit ones, which linen's layers reject.
    mesh = Mesh(np.array(devices), (AXIS,))
    whole = NamedSharding(mesh, PartitionSpec())
    parts = NamedSharding(mesh, PartitionSpec(AXIS))
    columns = NamedSharding(mesh, PartitionSpec(None, AXIS))
    return Engine(
        devices=devices,
        axis_name=None,
        replicate=lambda tree: jax.device_put(tree, whole),
        fetch=jax.device_get,
        split=lambda batch: jax.device_put(_check_leaves(batch, len(devices)), parts),
        compile_train=lambda step: jax.jit(
            step, in_shardings=(whole, parts), out_shardings=whole, donate_argnums=0
        ),
        compile_eval=lambda step: jax.jit(step, in_shardings=(whole, parts), out_shardings=whole),
        split_steps=lambda rows: jax.device_put(rows, columns),
        compile_resident=lambda step: jax.jit(
            step,
            in_shardings=(whole, {"whole": whole, "first": whole, "order": columns}),
            out_shardings=whole,
            donate_argnums=0,
        ),
    )


ENGINES = {"pmap": _pmap_engine, "mesh": _mesh_engine}


def make_engine(name: str, devices: Sequence[Any] | None = None) -> Engine:
    """The engine of that name, "pmap" or "mesh", on all local devices or those given.

    Raises:
      UserError: on an unknown name.
    """
    if name not in ENGINES:
        raise unknown("parallel", name, ENGINES)
    return ENGINES[name](devices or jax.local_devices())
