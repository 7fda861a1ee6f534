"""Where a step runs: the only file that says pmap, mesh or sharding.

An engine takes the same pure step to all devices of all processes: the state whole on each (or
spread over a mesh, see `_mesh_engine`), the batch split. Each process hands over its own part of a
batch, `mine`. The two engines differ in how the devices come to share batch statistics and
gradients: under `pmap` the step says so itself, by `axis_name`; under `jit` over a mesh the
compiler sees the global batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from resflax.errors import UserError, unknown

AXIS, FSDP = "batch", "fsdp"
# Smaller arrays (scales, biases) are not worth an exchange.
MIN_SHARD_SIZE = 2**12


@dataclass(frozen=True)
class Engine:
    """How to run a step on several devices.

    Attributes:
      devices: that share the batch, of all processes.
      axis_name: to make the step with; None if the step sees the global batch.
      mine: the rows of a batch of some size that this process hands over.
      place: puts a state on the devices.
      replicate: puts a copy of a tree on each device.
      fetch: one copy of what `place` or `replicate` made or a compiled step returned, whole, as
        NumPy arrays; all processes call it together.
      split: puts a part of a batch (a tree of arrays with a leading batch axis, of which this
        process has its own rows) on each device; raises `UserError` if the parts would not be
        equal.
      compile_train: a step `(state, batch) -> (state, metrics)`; the state's memory is reused.
      compile_eval: a step `(state, batch) -> metrics`.
      split_steps: puts a part of each batch of rows `(steps, batch)` on each device.
      compile_resident: a step `(state, data) -> (state, metrics)`, whose data hold "whole" and
        "first", from `replicate`, and "order", from `split_steps`.
    """

    devices: Sequence[Any]
    axis_name: str | None
    local_slice: Callable[[int], slice]
    put_state: Callable[[Any], Any]
    replicate: Callable[[Any], Any]
    to_host: Callable[[Any], Any]
    shard_batch: Callable[[Any], Any]
    compile_train: Callable[[Callable[..., Any]], Callable[..., Any]]
    compile_eval: Callable[[Callable[..., Any]], Callable[..., Any]]
    shard_index: Callable[[Any], Any]
    compile_train_on_device_data: Callable[[Callable[..., Any]], Callable[..., Any]]

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


def _local(devices: Sequence[Any]) -> list[Any]:
    return [device for device in devices if device.process_index == jax.process_index()]


def _rows(devices: Sequence[Any]) -> Callable[[int], slice]:
    """Which rows of a batch belong to the devices of this process, which lie side by side."""
    here = [device.process_index == jax.process_index() for device in devices]
    first, count = here.index(True), sum(here)

    def mine(size: int) -> slice:
        part = size // len(devices)
        return slice(first * part, (first + count) * part)

    return mine


def _pmap_engine(devices: Sequence[Any], fsdp: int) -> Engine:
    if fsdp != 1:
        raise UserError(f"config.mesh.fsdp is {fsdp} with config.parallel='pmap': expected 'mesh'")
    local = _local(devices)  # pmap takes and gives each process's own part
    count = len(local)
    sharding = NamedSharding(Mesh(np.array(local), (AXIS,)), PartitionSpec(AXIS))

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
        local_slice=_rows(devices),
        put_state=replicate,
        replicate=replicate,
        to_host=lambda tree: jax.device_get(jax.tree.map(lambda x: x[0], tree)),
        shard_batch=split,
        compile_train=lambda step: jax.pmap(step, AXIS, devices=devices, donate_argnums=0),
        compile_eval=lambda step: jax.pmap(step, AXIS, devices=devices),
        shard_index=split_steps,
        compile_train_on_device_data=lambda step: jax.pmap(
            step, AXIS, devices=devices, donate_argnums=0
        ),
    )


def _mesh_engine(devices: Sequence[Any], fsdp: int) -> Engine:
    """The batch is split over all devices; over each `fsdp` of them the state may be spread.

    So each holds a part of the parameters and the optimiser's state, and the compiler gathers what
    a layer needs (fully sharded data parallelism, Rajbhandari et al. 2019, arXiv:1910.02054).
    """
    if len(devices) % fsdp:
        raise UserError(
            f"config.mesh.fsdp is {fsdp}: expected a number that divides the {len(devices)} devices"
        )
    # `Mesh` makes Auto axes; `jax.make_mesh` makes Explicit ones, which linen's layers reject.
    mesh = Mesh(np.array(devices).reshape(-1, fsdp), (AXIS, FSDP))
    whole = NamedSharding(mesh, PartitionSpec())
    parts = NamedSharding(mesh, PartitionSpec((AXIS, FSDP)))
    columns = NamedSharding(mesh, PartitionSpec(None, (AXIS, FSDP)))
    gather = jax.jit(lambda tree: tree, out_shardings=whole)
    local = len(_local(devices))

    def spread(leaf: Any) -> NamedSharding:
        """The longest axis that divides is cut; an array without one, or a small one, is not."""
        fit = [axis for axis, n in enumerate(leaf.shape) if n % fsdp == 0]
        if fsdp == 1 or not fit or leaf.size < MIN_SHARD_SIZE:
            return whole
        longest = max(fit, key=lambda axis: leaf.shape[axis])
        names = [FSDP if axis == longest else None for axis in range(leaf.ndim)]
        return NamedSharding(mesh, PartitionSpec(*names))

    def put(leaf: Any, sharding: NamedSharding) -> Any:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    def own(tree: Any, sharding: NamedSharding) -> Any:
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)

    def constant(step: Callable[..., Any]) -> Callable[..., Any]:
        """The step, which gives its state back as it lay."""

        def run(state: Any, data: Any) -> tuple[Any, Any]:
            state, metrics = step(state, data)
            metrics = lax.with_sharding_constraint(metrics, whole)
            return lax.with_sharding_constraint(state, jax.tree.map(spread, state)), metrics

        return run

    def compile_train(step: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(constant(step), donate_argnums=0)

    return Engine(
        devices=devices,
        axis_name=None,
        local_slice=_rows(devices),
        put_state=lambda tree: jax.tree.map(lambda x: put(x, spread(x)), tree),
        replicate=lambda tree: jax.tree.map(lambda x: put(x, whole), tree),
        to_host=lambda tree: jax.device_get(tree if fsdp == 1 else gather(tree)),
        shard_batch=lambda batch: own(_check_leaves(batch, local), parts),
        compile_train=compile_train,
        compile_eval=lambda step: jax.jit(step, out_shardings=whole),
        shard_index=lambda rows: own(rows, columns),
        compile_train_on_device_data=compile_train,
    )


ENGINES = {"pmap": _pmap_engine, "mesh": _mesh_engine}


def make_engine(name: str, devices: Sequence[Any] | None = None, *, fsdp: int = 1) -> Engine:
    """The engine of that name, "pmap" or "mesh", on the devices of all processes or those given.

    `fsdp` is how many devices of a mesh share one copy of the state.

    Raises:
      UserError: on an unknown name, or an `fsdp` that does not fit.
    """
    if name not in ENGINES:
        raise unknown("parallel", name, ENGINES)
    everywhere = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return ENGINES[name](devices or everywhere, fsdp)
