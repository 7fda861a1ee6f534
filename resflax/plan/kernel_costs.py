"""Bytes and operations of a program from its text, for compilers without a cost analysis.

A GPU's program is a sequence of kernels: fusions, and calls of cuDNN and cuBLAS. The bytes of a
kernel are those of its operands and results, as if it read and wrote each of them once.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator

from resflax.plan.hlo import Instruction, Program, array_shapes, type_bytes

# Operations without a kernel, or whose kernels are counted elsewhere.
WITHOUT_KERNEL = {
    "parameter",
    "constant",
    "bitcast",
    "get-tuple-element",
    "tuple",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "iota",
}
CONTROL = {"while", "call", "conditional", "async-start"}
CONVOLUTIONS = {
    # Which array is the convolution's output and which the kernel: an operand, or -1, the result.
    "__cudnn$convForward": (-1, 1),
    "__cudnn$convBiasActivationForward": (-1, 1),
    "__cudnn$convBackwardInput": (0, 1),
    "__cudnn$convBackwardFilter": (1, -1),
}
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_LABELS = re.compile(r"dim_labels=\w+_(\w+)->\w+")
_CONTRACTED = re.compile(r'"lhs_contracting_dimensions":(\[[^\]]*\])')


def kernels(program: Program) -> Iterator[tuple[Instruction, int]]:
    """Yields each kernel of a program, and how often it runs."""

    def visit(name: str, times: int) -> Iterator[tuple[Instruction, int]]:
        for instruction in program.computations.get(name, ()):
            if instruction.opcode in CONTROL:
                for called in instruction.called:
                    yield from visit(called, times * instruction.trip_count)
            elif instruction.opcode not in WITHOUT_KERNEL and not instruction.opcode.endswith(
                "-done"
            ):
                yield instruction, times

    yield from visit(program.entry, 1)


def bytes_by_kind(program: Program) -> dict[str, int]:
    """Returns the bytes that kernels read and write, by "fusion", "cudnn", "cublas" and others."""
    types, totals = program.types(), defaultdict[str, int](int)
    for kernel, times in kernels(program):
        arrays = (type_bytes(types.get(name, "")) for name in kernel.operands)
        totals[kind_of(kernel)] += times * (type_bytes(kernel.type) + sum(arrays))
    return dict(sorted(totals.items(), key=lambda row: -row[1]))


def kind_of(kernel: Instruction) -> str:
    """Returns the library of a kernel, or its operation."""
    match = _TARGET.search(kernel.attributes) if kernel.opcode == "custom-call" else None
    if match is None:
        return kernel.opcode.removesuffix("-start")
    library = re.match(r"__(cudnn|cublas)", match[1])
    return library[1] if library else match[1]


def count_flops(program: Program) -> float:
    """Returns the operations of convolutions and matrix products; two for a multiply-add."""
    types = program.types()
    return float(sum(times * _flops(kernel, types) for kernel, times in kernels(program)))


def _flops(kernel: Instruction, types: dict[str, str]) -> int:
    match = _TARGET.search(kernel.attributes) if kernel.opcode == "custom-call" else None
    arrays = [array_shapes(types.get(name, ""))[:1] for name in kernel.operands]
    # Operands by their index; the result, without a library's workspace, is the last one.
    shapes = [row[0][1] if row else () for row in (*arrays, array_shapes(kernel.type)[:1])]
    if match and match[1] in CONVOLUTIONS:
        output, weights = (shapes[index] for index in CONVOLUTIONS[match[1]])
        labels = _LABELS.search(kernel.attributes)
        assert labels, kernel
        channels = labels[1].index("o")
        return 2 * math.prod(output) * math.prod(weights) // weights[channels]
    contracted = _CONTRACTED.search(kernel.attributes)
    if match and contracted:
        axes = map(int, json.loads(contracted[1]))
        return 2 * math.prod(shapes[-1]) * math.prod(shapes[0][axis] for axis in axes)
    return 0
