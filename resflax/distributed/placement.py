"""Devices of all processes, and arrays on them."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding


def all_devices() -> list[Any]:
    """Returns the devices of all processes; those of one process are contiguous."""
    return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))


def is_local(device: Any) -> bool:
    """Returns whether a device belongs to this process."""
    return bool(device.process_index == jax.process_index())


def local_devices(devices: Sequence[Any]) -> list[Any]:
    """Returns the devices of this process."""
    return [device for device in devices if is_local(device)]


def put(leaf: Any, sharding: NamedSharding) -> Any:
    """Puts an array on the devices; every process has all of it."""
    array = np.asarray(leaf)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def put_local(tree: Any, sharding: NamedSharding) -> Any:
    """Puts arrays on the devices; each process has the part for its devices."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)
