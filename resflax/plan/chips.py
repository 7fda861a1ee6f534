"""Accelerators: peak rates and memory of one device, and what its compiler needs to know."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from resflax.errors import UserError, unknown

GIB, TERA = 2**30, 10**12
CLOUD = "https://cloud.google.com/tpu/docs"


@dataclass(frozen=True)
class Chip:
    """A row of `CHIPS`. Rates are those of the data sheet, without sparsity.

    Attributes:
      name: name in `--topology`.
      platform: "tpu" or "cuda", JAX's name of the compiler.
      flops: operations per second of a chip by dtype of the network. TPUs compute convolutions of
        float32 arrays with bfloat16 products by default, GPUs with TF32.
      bandwidth: bytes per second between a chip and its memory.
      memory: bytes of a chip's memory.
      source: where the numbers are from.
      devices_per_chip: devices that JAX sees on a chip; each has an equal part of the chip.
      max_chips: chips of the largest slice, or GPUs of a host.
      axes: directions in which the chips of a slice are connected.
      cores_per_chip: what the number in a rented name counts: v4-8 has 8 cores, 4 chips; v5e-8 8
        chips. 0: no rented names.
      options: arguments of `get_topology_desc`.
      target: of a GPU, the fields of XLA's target configuration that differ between cards.
    """

    name: str
    platform: str
    flops: Mapping[str, float]
    bandwidth: float
    memory: int
    source: str
    devices_per_chip: int = 1
    max_chips: int = 8
    axes: int = 3
    cores_per_chip: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    target: Mapping[str, Any] = field(default_factory=dict)

    def device_flops(self, dtype: str) -> float:
        """Returns the operations per second of one device."""
        return self.flops["bfloat16" if dtype == "float16" else dtype] / self.devices_per_chip

    @property
    def device_bandwidth(self) -> float:
        """Bytes per second between one device and its memory."""
        return self.bandwidth / self.devices_per_chip

    @property
    def device_memory(self) -> int:
        """Bytes of one device's memory."""
        return self.memory // self.devices_per_chip


def _tpu(name: str, tflops: float, bandwidth: float, gib: int, **more: Any) -> Chip:
    flops = {"bfloat16": tflops * TERA, "float32": tflops * TERA}
    return Chip(name, "tpu", flops, bandwidth * 1e9, gib * GIB, f"{CLOUD}/{name}", **more)


def _gpu(
    name: str, tflops: float, tf32: float, bandwidth: float, memory: int, source: str, target: Any
) -> Chip:
    flops = {"bfloat16": tflops * TERA, "float32": tf32 * TERA}
    return Chip(name, "cuda", flops, bandwidth * 1e9, memory, source, target=target)


# What the compiler has to know about Hopper and Ampere, from the table of technical specifications
# per compute capability in NVIDIA's CUDA programming guide, and from the data sheets.
_HOPPER: Mapping[str, Any] = {
    "core_count": 132,
    "fpus_per_core": 128,
    "shared_memory_per_core": 233_472,
    "shared_memory_per_block_optin": 232_448,
    "l2_cache_size": 50 * 2**20,
    "clock_rate_ghz": 1.98,
    "compute_capability": (9, 0),
}
_AMPERE: Mapping[str, Any] = {
    "core_count": 108,
    "fpus_per_core": 64,
    "shared_memory_per_core": 167_936,
    "shared_memory_per_block_optin": 166_912,
    "l2_cache_size": 40 * 2**20,
    "clock_rate_ghz": 1.41,
    "compute_capability": (8, 0),
}
_ROWS = (
    # TFLOP/s in bfloat16, GB/s, GiB
    _tpu(
        *("v4", 275, 1200, 32),
        max_chips=4096,
        cores_per_chip=2,
        options={"chip_config_name": "megacore"},
    ),
    _tpu("v5e", 197, 819, 16, max_chips=256, axes=2, cores_per_chip=1),
    _tpu("v5p", 459, 2765, 95, max_chips=6144, cores_per_chip=2),
    _tpu("v6e", 918, 1638, 32, max_chips=256, axes=2, cores_per_chip=1),
    _tpu("tpu7x", 2307, 7380, 192, max_chips=9216, devices_per_chip=2),
    # TFLOP/s in bfloat16 and in TF32, GB/s, bytes that a process sees
    _gpu("h100", 989.4, 494.7, 3352, 84_942_979_072, "NVIDIA H100 data sheet, SXM5", _HOPPER),
    _gpu("h200", 989.4, 494.7, 4800, 151_397_597_184, "NVIDIA H200 data sheet, SXM5", _HOPPER),
    _gpu("a100", 312, 156, 2039, 85_100_068_864, "NVIDIA A100 data sheet, SXM4 80 GB", _AMPERE),
)
CHIPS: Mapping[str, Chip] = MappingProxyType({chip.name: chip for chip in _ROWS})
EXAMPLES = "v4-32, v4:2x2x4, v5e:16x16, v5p:4x4x4, v6e:16x16, tpu7x:2x2x1, h100, h100:8, h200:2x8"
# Names in Google Cloud's accelerator types.
ALIASES = MappingProxyType({"v5litepod": "v5e"})


def find_chip(name: str) -> Chip:
    """Returns a chip by its name.

    Raises:
      UserError: if it is not in `CHIPS`.

    >>> find_chip("v5e").device_memory // 2**30
    16
    """
    if not name:
        raise UserError(f"--topology is missing: expected for example {EXAMPLES}")
    name = ALIASES.get(name, name)
    if name not in CHIPS:
        raise unknown("accelerator", name, CHIPS)
    return CHIPS[name]
