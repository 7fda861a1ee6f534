"""Ensembles on several devices: members on separate devices, the batch split, or both.

The devices form a mesh with the axes "member" and "batch". One program runs on all of them, and
both axes are manual (`jax.shard_map`): each device gets its members and its rows of the batch, so
nothing is left for the compiler to partition. Members need no communication; where the batch is
split, the step averages over its axis, as under `pmap`.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from resflax.distributed.engines import BATCH_AXIS, Step, check_leaves
from resflax.distributed.member_program import MEMBER_AXIS, MemberProgram
from resflax.distributed.placement import all_devices, is_local, put, put_local
from resflax.errors import UserError, quantity, unknown

# How a device runs its members: as one vectorized program, or one after another.
METHODS = ("auto", "vmap", "map")

_MEMBERS = PartitionSpec(MEMBER_AXIS)
_MEMBERS_AND_ROWS = PartitionSpec(MEMBER_AXIS, BATCH_AXIS)


class EnsembleEngine:
    """Runs the step of one network for every member of an ensemble; see `Engine`.

    States have a leading member axis. A batch is shared by all members, `(n, ...)`, or has one for
    each, `(members, n, ...)`; compiled steps accept both, from `shard_batch` and
    `shard_member_batch`.

    Attributes:
      name: describes the mesh and the method, on which the last bits of results depend.
      devices: all devices, of all processes.
      size: number of members.
      member_devices: number of devices along the mesh's member axis, a divisor of `size`.
      batch_devices: number of devices along its batch axis.
      axis_name: the mapped axis to make the step with; None if each device has the whole batch.
      method: "vmap" or "map".
      mesh: the mesh, with the axes "member" and "batch".
    """

    def __init__(
        self,
        devices: Sequence[Any] | None,
        size: int,
        *,
        member_devices: int = 0,
        method: str = "auto",
    ) -> None:
        """Lays out the mesh.

        Args:
          devices: devices to run on; None for all devices of all processes.
          size: number of members.
          member_devices: devices along the member axis; 0 for as many as possible.
          method: "vmap" runs the members of one device as one vectorized program, "map" one after
            another; "auto" is "vmap": the best method depends on the size of a batch, see
            `with_method` and `resflax.kernels.members.choose_method`.

        Raises:
          UserError: if the members or the devices cannot be split that way.
        """
        if method not in METHODS:
            raise unknown("config.ensemble.method", method, METHODS)
        self.devices, self.size = devices or all_devices(), size
        self.member_devices = choose_member_devices(self.devices, size, member_devices)
        self.batch_devices = len(self.devices) // self.member_devices
        self.axis_name = BATCH_AXIS if self.batch_devices > 1 else None
        self.method = "vmap" if method == "auto" else method
        self.name = f"ensemble {self.member_devices}x{self.batch_devices} {self.method}"
        grid = np.array(self.devices).reshape(self.member_devices, self.batch_devices)
        self.mesh = Mesh(grid, (MEMBER_AXIS, BATCH_AXIS))
        local = np.argwhere(np.vectorize(is_local, otypes=[bool])(grid))
        self._first, self._last = local.min(0), local.max(0) + 1
        self._gather = jax.jit(lambda tree: tree, out_shardings=self._sharding())

    def with_method(self, method: str) -> "EnsembleEngine":
        """Returns an engine with the same mesh that runs the members of a device by `method`."""
        return type(self)(
            self.devices, self.size, member_devices=self.member_devices, method=method
        )

    def _sharding(self, *axes: str | None) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    @property
    def state_sharding(self) -> NamedSharding:
        """Sharding of each array of a state."""
        return self._sharding(MEMBER_AXIS)

    def local_slice(self, size: int) -> slice:
        """See `Engine`."""
        rows = size // self.batch_devices
        return slice(int(self._first[1]) * rows, int(self._last[1]) * rows)

    @property
    def local_members(self) -> range:
        """Indices of the members whose batches this process provides."""
        members = self.size // self.member_devices
        return range(int(self._first[0]) * members, int(self._last[0]) * members)

    def put_state(self, state: Any) -> Any:
        """Puts arrays with a leading member axis on the devices, split over the member axis."""
        return jax.tree.map(lambda x: put(x, self.state_sharding), state)

    def replicate(self, tree: Any) -> Any:
        """See `Engine`."""
        return jax.tree.map(lambda x: put(x, self._sharding()), tree)

    def to_host(self, tree: Any) -> Any:
        """See `Engine`; the members of all processes are returned in every process."""
        return jax.device_get(tree if jax.process_count() == 1 else self._gather(tree))

    def shard_batch(self, batch: Any) -> Any:
        """See `Engine`; all members get the same rows."""
        check_leaves(batch, self._rows_devices)
        return put_local(batch, self._sharding(BATCH_AXIS))

    def shard_member_batch(self, batch: Any) -> Any:
        """Splits batches of this process's members over its devices.

        Args:
          batch: pytree of arrays `(local_members, rows, ...)`; see `local_members` and
            `local_slice`.

        Raises:
          UserError: if the devices would get different numbers of rows.
        """
        check_leaves(batch, self._rows_devices, axis=1)
        return put_local(batch, self._sharding(MEMBER_AXIS, BATCH_AXIS))

    @property
    def _rows_devices(self) -> int:
        return int(self._last[1] - self._first[1])

    def shard_index(self, rows: Any) -> Any:
        """See `Engine`; all members get the same rows."""
        return put_local(rows, self._sharding(None, BATCH_AXIS))

    def shard_member_index(self, rows: Any) -> Any:
        """Splits arrays `(steps, local_members, batch)`, the rows of several batches."""
        return put_local(rows, self._sharding(None, MEMBER_AXIS, BATCH_AXIS))

    def compile_train(self, step: Step) -> Step:
        """Compiles `(state, batch) -> (state, metrics)`, all results with a member axis.

        The memory of `state` is reused.
        """
        return MemberProgram(step, self.mesh, self.method, _MEMBERS, updates_state=True)

    compile_train_on_device_data = compile_train

    def compile_eval(self, step: Step) -> Step:
        """Compiles `(state, batch) -> metrics`, whose sums or means the step takes over the batch.

        All results have a leading member axis.
        """
        return MemberProgram(step, self.mesh, self.method, _MEMBERS)

    def compile_predict(self, step: Step) -> Step:
        """Compiles `(state, batch) -> arrays`, one row per example.

        All results have leading axes of members and rows, `(members, n, ...)`.
        """
        return MemberProgram(step, self.mesh, self.method, _MEMBERS_AND_ROWS)


def choose_member_devices(devices: Sequence[Any], size: int, requested: int = 0) -> int:
    """Returns the number of devices along the member axis.

    Members on separate devices need no communication, so it is the largest possible one, unless
    another one is requested: a divisor of the number of members and of devices for which each
    process has a rectangle of the mesh.

    Args:
      devices: all devices, those of one process contiguous.
      size: number of members.
      requested: the number to check; 0 to choose.

    Raises:
      UserError: if `size` is less than 1, or the requested number is not possible.
    """
    if size < 1:
        raise UserError(f"config.ensemble.size is {size}: expected 1 or more")
    count, per_process = len(devices), sum(map(is_local, devices))
    common = math.gcd(size, count)
    possible = [
        n
        for n in range(1, common + 1)
        if common % n == 0 and (n == 1 or _is_rectangle(count // n, per_process))
    ]
    if requested and requested not in possible:
        raise UserError(
            f"config.ensemble.member_devices is {requested}: {quantity(size, 'member')} on"
            f" {quantity(count, 'device')} need {' or '.join(map(str, possible))} (0 chooses"
            f" {possible[-1]})"
        )
    return requested or possible[-1]


def _is_rectangle(columns: int, per_process: int) -> bool:
    """Returns whether `per_process` consecutive devices fill whole rows, or fit into one row."""
    return columns % per_process == 0 or per_process % columns == 0
