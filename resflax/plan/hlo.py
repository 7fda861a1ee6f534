"""Reads the text of a compiled program: computations, instructions, array sizes, trip counts."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{\s*$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*\w*)\[([0-9,<=]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|branch_computations|true_computation|false_computation"
    r"|called_computations)=(\{[^}]*\}|%[\w.\-]+)"
)
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BITS = re.compile(r"[a-z]+(\d+)")


@dataclass(frozen=True)
class Instruction:
    """One operation of a computation.

    Attributes:
      name: unique in the program.
      type: text of the result's type, "f32[8,16]{1,0}" or a tuple of such.
      opcode: the operation, such as "fusion".
      operands: names of the instructions that it reads.
      attributes: text after the operands.
    """

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it calls."""
        return tuple(name for m in _CALLED.finditer(self.attributes) for name in _names(m[1]))

    @property
    def trip_count(self) -> int:
        """Number of iterations of a loop; 1 if it is unknown, or for other operations."""
        match = _TRIP_COUNT.search(self.attributes) if self.opcode == "while" else None
        return int(match[1]) if match else 1


@dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
      computations: the instructions of each computation, by its name.
      entry: name of the computation that runs.
    """

    computations: dict[str, tuple[Instruction, ...]]
    entry: str

    def types(self) -> dict[str, str]:
        """Returns the type of each instruction by its name."""
        return {i.name: i.type for body in self.computations.values() for i in body}

    def executions(self) -> dict[str, int]:
        """Returns how often each computation runs; bodies of loops by their trip count."""
        counts: defaultdict[str, int] = defaultdict(int)

        def visit(name: str, times: int) -> None:
            counts[name] += times
            for instruction in self.computations.get(name, ()):
                for called in instruction.called:
                    visit(called, times * instruction.trip_count)

        visit(self.entry, 1)
        return dict(counts)


def parse_program(text: str) -> Program:
    """Parses the text of a compiled program, `compiled.as_text()`."""
    computations: dict[str, tuple[Instruction, ...]] = {}
    entry, name, body = "", "", list[Instruction]()
    for line in text.splitlines():
        header = None if line.startswith(" ") else _HEADER.match(line)
        if header:
            name, body = header[2], []
            entry = name if header[1] else entry
        elif line.startswith("}") and name:
            computations[name], name = tuple(body), ""
        elif name and (match := _INSTRUCTION.match(line)):
            body.append(_parse_instruction(match[1], match[2]))
    return Program(computations, entry)


def _parse_instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opcode = _OPCODE.match(text, end)
    assert opcode, text
    close = _closing(text, opcode.end() - 1)
    operands = tuple(_NAME.findall(text[opcode.end() : close]))
    return Instruction(name, text[:end], opcode[1], operands, text[close + 1 :])


def _closing(text: str, start: int) -> int:
    """Returns the position of the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if not depth:
            return i
    return len(text)


def _names(text: str) -> Iterator[str]:
    return (match[1] for match in _NAME.finditer(text))


def array_shapes(type_text: str) -> list[tuple[str, tuple[int, ...]]]:
    """Returns dtype and shape of each array of a type.

    >>> array_shapes("(bf16[4,3]{1,0:T(8,128)(2,1)}, u8[0]{0})")
    [('bf16', (4, 3)), ('u8', (0,))]
    """
    return [
        (dtype, tuple(int(n.strip("<=")) for n in shape.split(",") if n))
        for dtype, shape in _ARRAY.findall(type_text)
    ]


def type_bytes(type_text: str) -> int:
    """Returns the size of the arrays of a type in bytes.

    >>> type_bytes("(bf16[4,3]{1,0}, pred[7]{0}, token[])")
    31
    """
    return sum(_item_bits(d) * math.prod(s) // 8 for d, s in array_shapes(type_text))


def _item_bits(dtype: str) -> int:
    if dtype in ("token", "opaque"):
        return 0
    match = _BITS.match(dtype)  # f32, bf16, s4, f8e4m3fn
    return int(match[1]) if match and dtype != "pred" else 8
