"""Compiles one step of a run and reads its costs from what the compiler returns."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from resflax.distributed.placement import slice_index
from resflax.plan.chips import GIB, Chip
from resflax.plan.collectives import Traffic, count_collectives
from resflax.plan.hlo import parse_program
from resflax.plan.kernel_costs import bytes_by_kind, count_flops

# Autotuning and Triton's matrix products need the card itself.
OPTIONS: dict[str, dict[str, Any]] = {
    "tpu": {},
    "cuda": {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0},
}
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
_SIZE = r"([0-9.]+)([KMGT]?)"
# The compiler of TPUs gives up as soon as the temporaries, or all arrays, are too large.
_TEMPORARIES = re.compile(rf"temporaries \({_SIZE}\) exceeds available \w+ \({_SIZE}\)")
_TOTAL = re.compile(rf"Used {_SIZE} of {_SIZE} hbm")


@dataclass(frozen=True)
class Memory:
    """Memory of one device in a step, in bytes.

    Attributes:
      total: of all arrays; results that reuse the memory of arguments count once.
      available: what the device has for programs.
      arguments: of state and batch.
      temporaries: of everything in between.
      code: of the program itself.
    """

    total: int
    available: int
    arguments: int = 0
    temporaries: int = 0
    code: int = 0


@dataclass(frozen=True)
class CompiledStep:
    """Costs of a step on one device, as its compiler reports them.

    Attributes:
      name: name of the program.
      examples: examples of a call on one device, of all members.
      memory: of one device.
      fits: whether the step can run in this memory.
      seconds: time that it took to compile.
      flops: floating-point operations of a call; 0 if it does not fit.
      bytes: bytes that a call moves between the chip and its memory; 0 if it does not fit.
      bytes_by_kind: the same by kind of kernel; only for GPUs.
      collectives: communication by kind.
    """

    name: str
    examples: float
    memory: Memory
    fits: bool
    seconds: float
    flops: float = 0.0
    bytes: float = 0.0
    bytes_by_kind: dict[str, int] = field(default_factory=dict)
    collectives: dict[str, Traffic] = field(default_factory=dict)


def compile_step(
    name: str, lowered: Any, examples: float, chip: Chip, devices: Sequence[Any]
) -> CompiledStep:
    """Compiles a step for the devices of a topology.

    Args:
      name: name of the step.
      lowered: the step, lowered for the devices.
      examples: examples of a call on one device.
      chip: the devices' row of `CHIPS`.
      devices: all devices, in the order of the program's.
    """
    start = time.monotonic()
    try:
        compiled = lowered.compile(OPTIONS[chip.platform])
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        memory = needed_memory(str(e), chip)
        return CompiledStep(name, examples, memory, False, time.monotonic() - start)
    seconds = time.monotonic() - start
    memory = _memory(compiled.memory_analysis(), chip)
    program = parse_program(compiled.as_text())
    costs, kinds = compiled.cost_analysis() or {}, dict[str, int]()
    if not costs:
        kinds = bytes_by_kind(program)
        costs = {"flops": count_flops(program), "bytes accessed": sum(kinds.values())}
    return CompiledStep(
        name,
        examples,
        memory,
        memory.total <= memory.available,
        seconds,
        float(costs["flops"]),
        float(costs["bytes accessed"]),
        kinds,
        count_collectives(program, [network_index(device) for device in devices]),
    )


def network_index(device: Any) -> int:
    """Returns the number of a device's fast network: its slice of TPUs, or its host's GPUs."""
    return int(device.process_index) if device.platform == "gpu" else slice_index(device)


def needed_memory(message: str, chip: Chip) -> Memory:
    """Returns the memory that a program needs, from the error of a compiler that does not have it.

    >>> from resflax.plan.chips import CHIPS
    >>> text = "memory required for HLO temporaries (21.50G) exceeds available HBM (15.75G)."
    >>> needed_memory(text, CHIPS["v5e"]).total / 2**30
    21.5
    """
    match = _TEMPORARIES.search(message) or _TOTAL.search(message)
    if match is None:
        return Memory(chip.device_memory, chip.device_memory)
    needed, available = (
        int(float(number) * _UNITS[unit]) for number, unit in (match.group(1, 2), match.group(3, 4))
    )
    return Memory(needed, available, temporaries=needed if "temporaries" in match[0] else 0)


def _memory(stats: Any, chip: Chip) -> Memory:
    arguments, temporaries = stats.argument_size_in_bytes, stats.temp_size_in_bytes
    results = stats.output_size_in_bytes - stats.alias_size_in_bytes
    code = stats.generated_code_size_in_bytes
    total = arguments + temporaries + results + code
    return Memory(total, chip.device_memory, arguments, temporaries, code)
