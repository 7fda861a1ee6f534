"""Devices of all processes, and arrays on them.

Arrays can be abstract, `jax.ShapeDtypeStruct`s: putting one on devices returns its shape with the
sharding, from which a program can be compiled for devices that are not there.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding


def all_devices() -> list[Any]:
    """Returns the devices of all processes, in the order of `sort_devices`."""
    return sort_devices(jax.devices())


def sort_devices(devices: Iterable[Any]) -> list[Any]:
    """Returns devices in an order in which those of a slice, and of a process, are contiguous.

    Devices of a host, and of a slice of TPUs, share a fast network; between slices it is slow.
    """
    return sorted(devices, key=lambda d: (slice_index(d), d.process_index, d.id))


def slice_index(device: Any) -> int:
    """Returns the number of a device's slice; 0 where there is only one."""
    return getattr(device, "slice_index", None) or 0


def is_local(device: Any) -> bool:
    """Returns whether a device belongs to this process, as all devices of a topology do."""
    return bool(_is_of_topology(device) or device.process_index == jax.process_index())


def _is_of_topology(device: Any) -> bool:
    """Returns whether a device is not there: programs can only be compiled for it."""
    # The class of JAX's client for `jax.experimental.topologies`, which has no public name.
    return type(getattr(device, "client", None)).__name__ == "CompileOnlyPyClient"


def local_devices(devices: Sequence[Any]) -> list[Any]:
    """Returns the devices of this process."""
    return [device for device in devices if is_local(device)]


def is_abstract(tree: Any) -> bool:
    """Returns whether a pytree has shapes in place of arrays."""
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))


def to_default_device(tree: Any) -> Any:
    """Puts arrays on JAX's default device, by a transfer that `jax.transfer_guard` allows."""
    return jax.device_put(tree)


def put(leaf: Any, sharding: NamedSharding) -> Any:
    """Puts an array on the devices; every process has all of it."""
    if is_abstract(leaf):
        return _shard(leaf, sharding)
    array = np.asarray(leaf)
    parts = sharding.addressable_devices_indices_map(array.shape)
    shards = jax.device_put([array[index] for index in parts.values()], list(parts))
    return jax.make_array_from_single_device_arrays(array.shape, sharding, shards)


def put_local(tree: Any, sharding: NamedSharding) -> Any:
    """Puts arrays on the devices; each process has the part for its devices."""
    if is_abstract(tree):  # which one process has all of
        return jax.tree.map(lambda x: _shard(x, sharding), tree)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def put_transformed(transform: Callable[[Any], Any], tree: Any, sharding: NamedSharding) -> Any:
    """Puts the result of `transform`, a function of one array, on the devices of this process."""
    if is_abstract(tree):
        return jax.tree.map(lambda x: _shard(transform(_placeholder(x)), sharding), tree)
    return jax.device_put(jax.tree.map(transform, tree), sharding)


def _shard(array: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


def _placeholder(shape: jax.ShapeDtypeStruct) -> np.ndarray:
    """Returns an array of zeros that takes the memory of one element."""
    return np.broadcast_to(np.zeros((), shape.dtype), shape.shape)
