"""Data-parallel engines: one network on several devices.

An engine runs the same pure step on all devices of all processes: the state is replicated (or
sharded over a mesh, see `MeshEngine`), the batch is split. Each process provides its own rows of a
batch, `local_slice`. The engines differ in how devices share batch statistics and gradients: under
`pmap` and `shard_map` the step averages over `axis_name`; under `jit` over a mesh the compiler sees
the global batch. docs/pods.md says which engine is for what.

In place of arrays, the methods that put them on devices accept `jax.ShapeDtypeStruct`s, and
compiled steps have a method `lower`, so that a step can be compiled for devices that are not there.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from resflax.distributed.placement import (
    all_devices,
    is_local,
    local_devices,
    put,
    put_local,
    put_transformed,
)
from resflax.errors import UserError, unknown

Step = Callable[..., Any]

BATCH_AXIS, FSDP_AXIS = "batch", "fsdp"
# Arrays with fewer elements (scales, biases) are replicated: gathering them costs more than it
# saves.
MIN_SHARD_SIZE = 2**12


class Engine(Protocol):
    """Runs a step on several devices.

    Attributes:
      name: a name of `ENGINES`.
      devices: all devices, of all processes.
      batch_devices: number of equal parts that a batch is split into; its size is a multiple.
      axis_name: the mapped axis to make the step with, which reduces or gathers its results over
        it; None if the step sees the global batch.
    """

    name: str
    devices: Sequence[Any]
    batch_devices: int
    axis_name: str | None

    def local_slice(self, size: int) -> slice:
        """Returns the rows of a batch of `size` examples that this process provides."""
        ...

    def put_state(self, state: Any) -> Any:
        """Puts a train state on the devices, replicated or sharded."""
        ...

    def replicate(self, tree: Any) -> Any:
        """Puts a copy of a pytree on each device."""
        ...

    def to_host(self, tree: Any) -> Any:
        """Returns one copy of a replicated or sharded pytree as NumPy arrays.

        Accepts results of `put_state`, `replicate` and compiled steps. With several processes, all
        of them must call it.
        """
        ...

    def shard_batch(self, batch: Any) -> Any:
        """Splits this process's rows of a batch over its devices.

        Args:
          batch: pytree of arrays with a leading batch axis.

        Raises:
          UserError: if the devices would get different numbers of rows.
        """
        ...

    def shard_index(self, rows: Any) -> Any:
        """Splits arrays `(steps, batch)`, the rows of several batches, over the devices."""
        ...

    def compile_train(self, step: Step) -> Step:
        """Compiles `(state, batch) -> (state, metrics)`; the memory of `state` is reused."""
        ...

    def compile_eval(self, step: Step) -> Step:
        """Compiles `(state, batch) -> metrics`."""
        ...

    def compile_train_on_device_data(self, step: Step) -> Step:
        """Compiles `(state, data) -> (state, metrics)` for data that are on the devices already.

        The data have "dataset" and "first_step" from `replicate` and "order" from `shard_index`.
        """
        ...


def check_batch_size(batch_size: int, devices: int) -> None:
    """Raises `UserError` if a batch cannot be split evenly over the devices."""
    if batch_size % devices:
        below, above = batch_size // devices * devices, -(-batch_size // devices) * devices
        valid = f"{below} or {above}" if below else f"{above}"
        raise UserError(
            f"batch_size {batch_size} is not a multiple of the {devices} devices: use {valid}"
        )


def check_leaves(batch: Any, devices: int, axis: int = 0) -> None:
    """Raises `UserError` if the arrays of a batch cannot be split evenly over the devices."""
    for leaf in jax.tree.leaves(batch):
        check_batch_size(leaf.shape[axis], devices)


def _local_slice(devices: Sequence[Any], size: int) -> slice:
    """Returns the rows of a batch that belong to this process, whose devices are contiguous."""
    local = [is_local(device) for device in devices]
    rows = size // len(devices)
    first = local.index(True)
    return slice(first * rows, (first + sum(local)) * rows)


class PmapEngine:
    """Runs a step under `jax.pmap`: state replicated, each device sees a part of the batch.

    With several processes, `jax.pmap` converts every array of the state in every call, from the
    process's own part to a global array and back (docs.jax.dev/en/latest/migrate_pmap.html);
    `ShardMapEngine` keeps global arrays.
    """

    name = "pmap"
    axis_name: str | None = BATCH_AXIS

    def __init__(self, devices: Sequence[Any]) -> None:
        self.devices, self.batch_devices = devices, len(devices)
        local = local_devices(devices)  # pmap takes and returns the part of each process
        self._count = len(local)
        self._sharding = NamedSharding(
            Mesh(np.array(local), (BATCH_AXIS,)), PartitionSpec(BATCH_AXIS)
        )

    def local_slice(self, size: int) -> slice:
        """See `Engine`."""
        return _local_slice(self.devices, size)

    def replicate(self, tree: Any) -> Any:
        """See `Engine`."""
        return self._put(lambda x: np.broadcast_to(x, (self._count, *np.shape(x))), tree)

    put_state = replicate

    def to_host(self, tree: Any) -> Any:
        """See `Engine`."""
        # One device's copy. `x[0]` would compile and run a gather over all devices.
        shards = jax.tree.map(lambda x: x.addressable_data(0), tree)
        return jax.tree.map(lambda x: x[0, ...], jax.device_get(shards))  # 0-d arrays, no scalars

    def shard_batch(self, batch: Any) -> Any:
        """See `Engine`."""
        check_leaves(batch, self._count)
        return self._put(lambda x: x.reshape(self._count, -1, *x.shape[1:]), batch)

    def shard_index(self, rows: Any) -> Any:
        """See `Engine`."""
        return self._put(lambda x: x.reshape(len(x), self._count, -1).swapaxes(0, 1), rows)

    def _put(self, transform: Callable[[Any], Any], tree: Any) -> Any:
        return put_transformed(transform, tree, self._sharding)

    def compile_train(self, step: Step) -> Step:
        """See `Engine`."""
        return jax.pmap(step, self.axis_name, devices=self.devices, donate_argnums=0)

    compile_train_on_device_data = compile_train

    def compile_eval(self, step: Step) -> Step:
        """See `Engine`."""
        return jax.pmap(step, self.axis_name, devices=self.devices)


class MeshEngine:
    """Runs a step under `jax.jit` over a mesh: the batch is split over all devices.

    With `fsdp > 1`, the state is sharded over groups of `fsdp` devices: each holds a part of the
    parameters and of the optimizer's state, and the compiler gathers what a layer needs (fully
    sharded data parallelism, Rajbhandari et al. 2019, arXiv:1910.02054). The groups are neighbors
    in the order of `sort_devices`, so that they stay inside a slice if `fsdp` divides the number of
    its devices, and only averages of gradients and batch statistics cross the slow network.
    """

    name = "mesh"
    axis_name: str | None = None
    _axes: tuple[str, ...] = (BATCH_AXIS, FSDP_AXIS)

    def __init__(self, devices: Sequence[Any], fsdp: int = 1) -> None:
        if len(devices) % fsdp:
            raise UserError(
                f"config.mesh.fsdp is {fsdp}: expected a divisor of the number of devices,"
                f" {len(devices)}"
            )
        self.devices, self.batch_devices, self._fsdp = devices, len(devices), fsdp
        # `Mesh` has Auto axes; `jax.make_mesh` makes Explicit ones, which linen's layers reject.
        mesh = Mesh(np.array(devices).reshape((-1, fsdp)[: len(self._axes)]), self._axes)
        self._mesh = mesh
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self._rows = NamedSharding(mesh, PartitionSpec(self._axes))
        self._columns = NamedSharding(mesh, PartitionSpec(None, self._axes))
        self._gather = jax.jit(lambda tree: tree, out_shardings=self._replicated)
        self._count = len(local_devices(devices))

    def _state_sharding(self, leaf: Any) -> NamedSharding:
        """Shards the longest divisible axis; replicates small arrays and those without one."""
        divisible = [axis for axis, n in enumerate(leaf.shape) if n % self._fsdp == 0]
        if self._fsdp == 1 or not divisible or leaf.size < MIN_SHARD_SIZE:
            return self._replicated
        longest = max(divisible, key=lambda axis: leaf.shape[axis])
        names = [FSDP_AXIS if axis == longest else None for axis in range(leaf.ndim)]
        return NamedSharding(self._mesh, PartitionSpec(*names))

    def local_slice(self, size: int) -> slice:
        """See `Engine`."""
        return _local_slice(self.devices, size)

    def put_state(self, state: Any) -> Any:
        """See `Engine`."""
        return jax.tree.map(lambda x: put(x, self._state_sharding(x)), state)

    def replicate(self, tree: Any) -> Any:
        """See `Engine`."""
        return jax.tree.map(lambda x: put(x, self._replicated), tree)

    def to_host(self, tree: Any) -> Any:
        """See `Engine`."""
        return jax.device_get(tree if self._fsdp == 1 else self._gather(tree))

    def shard_batch(self, batch: Any) -> Any:
        """See `Engine`."""
        check_leaves(batch, self._count)
        return put_local(batch, self._rows)

    def shard_index(self, rows: Any) -> Any:
        """See `Engine`."""
        return put_local(rows, self._columns)

    def compile_train(self, step: Step) -> Step:
        """See `Engine`."""

        def step_with_shardings(state: Any, data: Any) -> tuple[Any, Any]:
            """Keeps the input sharding on the output state."""
            state, metrics = step(state, data)
            metrics = lax.with_sharding_constraint(metrics, self._replicated)
            shardings = jax.tree.map(self._state_sharding, state)
            return lax.with_sharding_constraint(state, shardings), metrics

        return jax.jit(step_with_shardings, donate_argnums=0)

    compile_train_on_device_data = compile_train

    def compile_eval(self, step: Step) -> Step:
        """See `Engine`."""
        return jax.jit(step, out_shardings=self._replicated)


class ShardMapEngine(MeshEngine):
    """Runs a step under `jax.shard_map`: state replicated, each device sees a part of the batch.

    It computes as `PmapEngine` does, on the arrays of a `MeshEngine`.
    """

    name = "shard_map"
    axis_name: str | None = BATCH_AXIS
    _axes = (BATCH_AXIS,)

    def __init__(self, devices: Sequence[Any]) -> None:
        super().__init__(devices)

    def compile_train(self, step: Step) -> Step:
        """See `Engine`."""
        return jax.jit(self._map(step, self._rows.spec), donate_argnums=0)

    def compile_train_on_device_data(self, step: Step) -> Step:
        """See `Engine`."""

        def run(state: Any, data: Any) -> Any:
            specs = dict.fromkeys(data, PartitionSpec()) | {"order": self._columns.spec}
            return self._map(step, specs)(state, data)

        return jax.jit(run, donate_argnums=0)

    def compile_eval(self, step: Step) -> Step:
        """See `Engine`."""
        return jax.jit(self._map(step, self._rows.spec))

    def _map(self, step: Step, data: Any) -> Step:
        specs = (PartitionSpec(), data)
        return jax.shard_map(step, mesh=self._mesh, in_specs=specs, out_specs=PartitionSpec())


ENGINES: dict[str, Callable[..., Engine]] = {
    "pmap": PmapEngine,
    "mesh": MeshEngine,
    "shard_map": ShardMapEngine,
}


def check_fsdp(name: str, fsdp: int) -> None:
    """Raises `UserError` if the engine cannot shard the state."""
    if name != "mesh" and fsdp != 1:
        raise UserError(
            f"config.mesh.fsdp is {fsdp} with config.parallel={name!r}: expected 'mesh'"
        )


def make_engine(name: str, devices: Sequence[Any] | None = None, *, fsdp: int = 1) -> Engine:
    """Makes an engine by name.

    Args:
      name: a name of `ENGINES`.
      devices: devices to run on; by default all devices of all processes.
      fsdp: number of devices of a mesh that share one copy of the state.

    Raises:
      UserError: on an unknown name, or an `fsdp` that does not divide the number of devices.
    """
    if name not in ENGINES:
        raise unknown("parallel", name, ENGINES)
    check_fsdp(name, fsdp)
    devices = devices or all_devices()
    return MeshEngine(devices, fsdp) if name == "mesh" else ENGINES[name](devices)


def environment(engine: Engine) -> dict[str, Any]:
    """Returns platform, devices, processes and versions: they affect the bits of results."""
    return {
        "platform": engine.devices[0].platform,
        "devices": len(engine.devices),
        "processes": jax.process_count(),
        "engine": engine.name,
        "jax": jax.__version__,
    }
