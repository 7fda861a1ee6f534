"""Topologies by name: the devices of a slice or of several, none of which need to be there."""

import importlib.util
import math
import re
from dataclasses import dataclass
from typing import Any

from resflax.errors import UserError
from resflax.plan.chips import EXAMPLES, Chip, find_chip
from resflax.plan.gpu_target import target_config

# By platform: the packages of which one has the compiler, and the extra that installs it.
COMPILERS = {
    "tpu": (("libtpu",), "tpu-plan"),
    "cuda": (("jax_cuda12_plugin", "jax_cuda13_plugin"), "gpu-plan"),
}
TPUS_PER_HOST = 4
NUMBER = "[1-9][0-9]{0,3}"


@dataclass(frozen=True)
class Topology:
    """A number of equal slices of one kind of chip.

    Attributes:
      name: such as "v5e:4x4".
      chip: the row of the chip.
      dimensions: chips of a slice in each direction; of GPUs, hosts and GPUs of a host.
      num_slices: number of slices of TPUs.
    """

    name: str
    chip: Chip
    dimensions: tuple[int, ...]
    num_slices: int = 1

    @property
    def device_count(self) -> int:
        """Number of devices of all slices."""
        return math.prod(self.dimensions) * self.num_slices * self.chip.devices_per_chip

    def describe(self) -> str:
        """Returns the name with the number of slices.

        >>> parse_topology("v5e:4x4", 2).describe()
        '2 slices of v5e:4x4'
        """
        return self.name if self.num_slices == 1 else f"{self.num_slices} slices of {self.name}"


def parse_topology(name: str, num_slices: int = 1) -> Topology:
    """Returns the topology of a name.

    Args:
      name: of TPUs the chips in each direction, `CHIP:XxY` or `CHIP:XxYxZ`, or the name under which
        Google Cloud rents the slice, such as v4-32 or v5litepod-16; of GPUs `CHIP`, `CHIP:N`, or
        `CHIP:HOSTSxN`.
      num_slices: number of slices of TPUs.

    Raises:
      UserError: if the chip is unknown, or there are no slices of this size.

    >>> parse_topology("h100:8").dimensions, parse_topology("v5p:4x4x4").device_count
    ((1, 8), 64)
    >>> parse_topology("v4-32").name, parse_topology("v5litepod-8").name
    ('v4:2x2x4', 'v5e:2x4')
    """
    name = name.strip().lower()
    chip = find_chip(re.split("[:-]", name)[0])
    if num_slices < 1:
        raise UserError(f"--num_slices is {num_slices}: expected 1 or more")
    parse = _parse_tpus if chip.platform == "tpu" else _parse_gpus
    dimensions = parse(name, chip)
    if num_slices > 1 and chip.platform != "tpu":
        raise UserError(
            f"--num_slices={num_slices} is for TPUs: several hosts of {chip.name} are"
            f" --topology={chip.name}:{num_slices}x{dimensions[-1]}"
        )
    if chip.platform == "tpu":
        name = f"{chip.name}:{'x'.join(map(str, dimensions))}"
    return Topology(name, chip, dimensions, num_slices)


def _parse_tpus(name: str, chip: Chip) -> tuple[int, ...]:
    if rented := re.fullmatch(r"\w+-([0-9]{1,6})", name):
        return _rented_slice(name, int(rented[1]), chip)
    match = re.fullmatch(rf"\w+:({NUMBER}(?:x{NUMBER}){{1,2}})", name)
    if not match:
        raise _unknown_topology(name)
    dimensions = tuple(map(int, match[1].split("x")))
    if len(dimensions) > chip.axes:
        raise UserError(
            f"--topology={name} has {len(dimensions)} directions: chips of {chip.name} are"
            f" connected in {chip.axes}, such as {_cube(chip)}"
        )
    dimensions += (1,) * (chip.axes - len(dimensions))
    chips = math.prod(dimensions)
    if chips > chip.max_chips:
        raise UserError(
            f"--topology={name} has {chips} chips: a slice of {chip.name} has at most"
            f" {chip.max_chips}; --num_slices=N plans for several slices"
        )
    if chips >= TPUS_PER_HOST and any(n % 2 for n in dimensions[:2]):
        raise UserError(
            f"--topology={name}: hosts have 2x2 chips: expected even numbers, such as {_cube(chip)}"
        )
    return dimensions


def _rented_slice(name: str, cores: int, chip: Chip) -> tuple[int, ...]:
    """Returns the chips in each direction of the slice that Google Cloud calls `name`.

    Of the shapes that a number of chips allows, it is the one nearest to a square or a cube, as in
    the tables of sizes of Google Cloud's pages on each TPU.
    """
    per_chip = chip.cores_per_chip
    smallest = 4 if chip.axes == 3 else 1
    sizes = [smallest << k for k in range(14) if smallest << k <= chip.max_chips]
    if not per_chip or cores % per_chip or cores // per_chip not in sizes:
        names = ", ".join(f"{chip.name}-{size * per_chip}" for size in sizes if size != 2)
        raise UserError(
            f"--topology={name} names no slice of {chip.name}: expected"
            + (f" one of {names}, or" if per_chip else "")
            + f" the chips in each direction, such as {_cube(chip)}"
        )
    dimensions = [2, 2, 1] if chip.axes == 3 else [1, 1]
    while math.prod(dimensions) < cores // per_chip:
        last_smallest = max(range(chip.axes), key=lambda axis: (-dimensions[axis], axis))
        dimensions[last_smallest] *= 2
    return tuple(dimensions)


def _cube(chip: Chip) -> str:
    return f"{chip.name}:{'x'.join(['4'] * chip.axes)}"


def _parse_gpus(name: str, chip: Chip) -> tuple[int, int]:
    match = re.fullmatch(rf"\w+(?::(?:({NUMBER})x)?({NUMBER}))?", name)
    if not match:
        raise _unknown_topology(name)
    hosts, gpus = int(match[1] or 1), int(match[2] or 1)
    if gpus > chip.max_chips:
        raise UserError(
            f"--topology={name} has {gpus} GPUs in a host: expected at most {chip.max_chips};"
            f" {chip.name}:HOSTSx{chip.max_chips} plans for several hosts"
        )
    return hosts, gpus


def _unknown_topology(name: str) -> UserError:
    return UserError(f"unknown topology {name!r}: expected for example {EXAMPLES}")


def check_compiler(platform: str) -> None:
    """Raises `UserError` if the compiler of a platform is not installed."""
    packages, extra = COMPILERS[platform]
    if not any(map(importlib.util.find_spec, packages)):
        raise UserError(
            f"a plan for {'TPUs' if platform == 'tpu' else 'NVIDIA GPUs'} needs the package"
            f' {packages[0]}: pip install "resflax[{extra}]"'
        )


def topology_devices(topology: Topology) -> list[Any]:
    """Returns the devices of a topology, to compile for, in the order of a run's devices.

    Raises:
      UserError: if the compiler is missing, or does not know the topology.
    """
    check_compiler(topology.chip.platform)
    import jax
    from jax.experimental import topologies

    from resflax.distributed.placement import sort_devices

    find = _tpu_arguments if topology.chip.platform == "tpu" else _gpu_arguments
    try:
        return sort_devices(topologies.get_topology_desc(**find(topology)).devices)
    except (jax.errors.JaxRuntimeError, NotImplementedError) as e:
        reason = str(e).splitlines()[0].partition(": ")[2] or str(e)
        raise UserError(f"the compiler has no topology {topology.name!r}: {reason}") from e


def _tpu_arguments(topology: Topology) -> dict[str, Any]:
    arguments: dict[str, Any] = {"topology_name": topology.name, "platform": "tpu"}
    if topology.num_slices > 1:
        arguments["num_slices"] = topology.num_slices
    if math.prod(topology.dimensions) < TPUS_PER_HOST:
        arguments["chips_per_host_bounds"] = [*topology.dimensions, 1][:3]
    return arguments | dict(topology.chip.options)


def _gpu_arguments(topology: Topology) -> dict[str, Any]:
    hosts, gpus = topology.dimensions
    return {
        "platform": "cuda",
        "topology": f"{hosts}x1x{gpus}",  # slices, hosts of a slice, GPUs of a host
        "target_config": target_config(topology.chip),
    }
