"""XLA's target configuration of a GPU, from the numbers of its data sheet."""

from collections.abc import Mapping
from typing import Any

from resflax.plan.chips import Chip

# The same for all GPUs since Volta.
COMMON: Mapping[str, Any] = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "threads_per_core_limit": 2048,
    "shared_memory_per_block": 49_152,
    "registers_per_core_limit": 65_536,
    "registers_per_block_limit": 65_536,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 65_535,
    "block_dim_limit_z": 65_535,
}
# cuDNN of the wheels of jax 0.10.
DNN_VERSION = "major: 9 minor: 10 patch: 0"


def target_config(chip: Chip) -> str:
    """Returns the target configuration of a GPU as the text of a protocol buffer.

    The fields are those of `GpuTargetConfigProto` in openxla/xla, which has such a text for each
    card under `xla/backends/gpu/target_config/specs/`.
    """
    own = dict(chip.target)
    major, minor = own.pop("compute_capability")
    fields = {
        **COMMON,
        **own,
        "memory_bandwidth": int(chip.bandwidth),
        "device_memory_size": chip.memory,
        "cuda_compute_capability": f"{{ major: {major} minor: {minor} }}",
    }
    lines = "\n".join(f"  {key}: {value}" for key, value in fields.items())
    lines = lines.replace("cuda_compute_capability:", "cuda_compute_capability")
    return (
        f"gpu_device_info {{\n{lines}\n}}\n"
        f'platform_name: "CUDA"\ndnn_version_info {{ {DNN_VERSION} }}\n'
        f'device_description_str: "NVIDIA {chip.name.upper()}"\n'
    )
