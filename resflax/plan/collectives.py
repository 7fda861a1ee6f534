"""Communication of a compiled program: number and bytes of its collectives, by kind."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from resflax.plan.hlo import Instruction, Program, type_bytes

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[0-9,{}]*\})\}")
_IOTA = re.compile(r"replica_groups=\[([0-9,]+)\]<=\[([0-9,]+)\](?:T\(([0-9,]+)\))?")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([0-9,]+)\](?:T\(([0-9,]+)\))?\))?"
    r" \{([^}]*)\}"
)
_AXIS = re.compile(r"'(\w+)'(?::\((\d+)\)(\d+))?(?:=(\d+))?")
# The TPU compiler turns the part of a collective between slices into a transfer by the hosts.
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


@dataclass
class Traffic:
    """Collectives of one kind in a step.

    Attributes:
      count: number of operations inside slices.
      bytes: their arrays on one device, in bytes: the larger of operands and results.
      count_across_slices: number of operations between slices (of GPUs: between hosts).
      bytes_across_slices: their arrays on one device, in bytes.
    """

    count: int = 0
    bytes: int = 0
    count_across_slices: int = 0
    bytes_across_slices: int = 0


def count_collectives(program: Program, slices: Sequence[int]) -> dict[str, Traffic]:
    """Counts the collectives of a program by kind.

    Args:
      program: the compiled program.
      slices: the slice of each device, in the order of the program's devices.

    Returns:
      A row for each kind that the program has.
    """
    types, found = program.types(), dict[str, Traffic]()
    for name, times in program.executions().items():
        for instruction in program.computations.get(name, ()):
            kind, across = _classify(instruction, slices)
            if not kind:
                continue
            traffic = found.setdefault(kind, Traffic())
            size = _bytes(instruction, types) * times
            if across:
                traffic.count_across_slices += times
                traffic.bytes_across_slices += size
            else:
                traffic.count += times
                traffic.bytes += size
    return found


def _classify(instruction: Instruction, slices: Sequence[int]) -> tuple[str, bool]:
    """Returns the kind of a collective, "" for other operations, and whether it leaves a slice."""
    if instruction.opcode == "send":
        match = _BETWEEN_SLICES.search(instruction.attributes)
        return (match[1].lower().replace("_", "-"), True) if match else ("", False)
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return "", False
    return kind, any(len({slices[i] for i in g}) > 1 for g in device_groups(instruction, slices))


def device_groups(instruction: Instruction, slices: Sequence[int]) -> list[list[int]]:
    """Returns the indices of the devices that communicate with each other.

    A program of the TPU compiler for several slices is that of one of them: its indices are those
    of the first slice.
    """
    text = instruction.attributes
    if match := _IOTA.search(text):
        shape, dims, order = map(_numbers, match.groups())
        return _transposed(dims, order).reshape(shape).tolist()
    if match := _MESH.search(text):
        return _mesh_groups(*match.groups())
    if match := _LISTED.search(text):
        groups = re.findall(r"\{([0-9,]*)\}", match[1])
        return [_numbers(group) for group in groups]
    return [list(range(len(slices)))]


def _numbers(text: str | None) -> list[int]:
    return [int(n) for n in text.split(",")] if text else []


def _transposed(dims: list[int], order: list[int]) -> np.ndarray:
    """Returns the numbers from 0 in an array of this shape, with its axes in another order."""
    indices = np.arange(np.prod(dims)).reshape(dims)
    return indices.transpose(order) if order else indices


def _mesh_groups(mesh: str, dims: str | None, order: str | None, axes: str) -> list[list[int]]:
    """Returns the groups along some axes of a mesh.

    An axis can be a part of one of the mesh: `'a':(2)4` is the middle one of three factors of `a`.
    """
    sizes = {name: int(size) for name, _, _, size in _AXIS.findall(mesh)}
    chosen = [(name, before, part) for name, before, part, _ in _AXIS.findall(axes)]
    shape, along = list[int](), list[int]()
    for name, size in sizes.items():
        parts = sorted((int(b or 1), int(p or size)) for n, b, p in chosen if n == name)
        done = 1
        for before, part in parts:
            along.append(len(shape) + 1)
            shape += [before // done, part]
            done = before * part
        shape.append(size // done)
    devices = _transposed(_numbers(dims) or [int(np.prod(shape))], _numbers(order)).reshape(shape)
    rest = [axis for axis in range(len(shape)) if axis not in along]
    count = int(np.prod([shape[axis] for axis in rest]))
    return devices.transpose([*rest, *along]).reshape(count, -1).tolist()


def _bytes(instruction: Instruction, types: dict[str, str]) -> int:
    operands = sum(type_bytes(types.get(name, "")) for name in instruction.operands)
    results = type_bytes(instruction.type)
    if instruction.opcode == "send" or (
        instruction.opcode.endswith("-start") and instruction.opcode != "all-reduce-start"
    ):
        results -= operands  # the result has the operands too
    return max(operands, results)
