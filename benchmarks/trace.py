"""The largest costs of a compiled function, from a trace of JAX's profiler."""

import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

# Where an operation comes from, in the text of a compiled program.
_OPERATION = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*?op_name="([^"]*)"', re.MULTILINE)


class Cost(NamedTuple):
    """Operations of the same origin.

    Attributes:
      name: the JAX operation, with the layer and the direction; blocks are not distinguished.
      milliseconds: device time of a call.
      share: of the device time of all operations.
    """

    name: str
    milliseconds: float
    share: float


def largest_costs(call: Callable[[], Any], text: str, calls: int, count: int = 3) -> list[Cost]:
    """Traces some calls and returns the operations that took most of the time.

    Args:
      call: runs the compiled function and waits for its result.
      text: the text of the compiled program, for the origin of its operations.
      calls: number of calls.
      count: number of results.
    """
    origins = {name: describe(op_name) for name, op_name in _OPERATION.findall(text)}
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            for _ in range(calls):
                call()
        path = next(Path(folder).rglob("*.xplane.pb"))
        profile = jax.profiler.ProfileData.from_file(str(path))
        return sum_costs(_operations(profile), origins, calls)[:count]


def sum_costs(
    operations: Iterator[tuple[str, float]], origins: Mapping[str, str], calls: int
) -> list[Cost]:
    """Adds up the nanoseconds of operations by origin, the largest first.

    >>> rows = [("fusion.1", 3e6), ("fusion.2", 1e6), ("memset", 4e6)]
    >>> for cost in sum_costs(iter(rows), {"fusion.1": "conv", "fusion.2": "conv"}, calls=2):
    ...     print(cost)
    Cost(name='conv', milliseconds=2.0, share=0.5)
    Cost(name='memset', milliseconds=2.0, share=0.5)
    """
    totals: defaultdict[str, float] = defaultdict(float)
    for name, nanoseconds in operations:
        totals[origins.get(name, name)] += nanoseconds
    everything = sum(totals.values()) or 1.0
    rows = sorted(totals.items(), key=lambda row: -row[1])
    return [Cost(name, 1e-6 * t / calls, t / everything) for name, t in rows]


def describe(op_name: str) -> str:
    """Shortens the origin of an operation, without the number of the block.

    >>> describe("jit(step)/transpose(jvp(ResNet))/stage2_block1/conv1/conv")
    'transpose(jvp(ResNet))/block/conv1/conv'
    """
    path = re.sub(r"stage\d+_block\d+", "block", op_name).split("/")
    return "/".join(part for part in path if not part.startswith("jit("))


def _operations(profile: Any) -> Iterator[tuple[str, float]]:
    """Yields name and nanoseconds of each kernel of a GPU, or of each operation of a CPU."""
    planes = list(profile.planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    for plane in devices or planes:
        for line in plane.lines:
            # A device has further lines that show the same time by module or by source line.
            if devices and not line.name.startswith("Stream"):
                continue
            for event in line.events:
                operation = dict(event.stats).get("hlo_op")
                if str(operation).startswith("command_buffer"):  # a graph of several kernels
                    operation = re.sub(r"_(\d+)$", r".\1", event.name)
                if devices or operation:
                    yield str(operation or event.name), event.duration_ns
