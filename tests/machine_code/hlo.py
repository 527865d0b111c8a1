"""What a compiled XLA program launches, read from its text: kernels, and the bytes that each moves.

The text is the scheduled, optimized module. Every instruction of the entry computation is a kernel of its
own, but for those that only name memory. A kernel moves its operands and its results once: a second read that
a cache serves, and one that it does not, both go unseen.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64,
    "u64": 64, "f8e4m3fn": 8, "f8e5m2": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "token": 0,
}  # fmt: skip
NOT_LAUNCHED = {
    "parameter", "constant", "bitcast", "tuple", "get-tuple-element", "opt-barrier", "after-all",
    "partition-id", "replica-id",
}  # fmt: skip

_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO. `operands` are names within the computation; `line` is all of it."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    line: str

    def attribute(self, name: str) -> str | None:
        """The value of an attribute that is a name or a number."""
        found = re.search(rf"[ ,]{name}=%?([\w.\-]+)", self.line)
        return found and found[1]


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in order."""

    instructions: dict[str, Instruction]

    def users(self, name: str) -> list[Instruction]:
        """The instructions that read a value."""
        return [user for user in self.instructions.values() if name in user.operands]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One launch: the bytes that it reads and writes, and how often the program launches it."""

    name: str
    opcode: str
    read: int
    written: int
    times: int

    @property
    def moved(self) -> int:
        """Bytes over all launches."""
        return self.times * (self.read + self.written)


class Module:
    """A compiled program, from `compiled.as_text()`."""

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        for line in text.splitlines():
            if found := _COMPUTATION.match(line):
                current: dict[str, Instruction] = {}
                self.computations[found[2]] = Computation(current)
                if found[1]:
                    self.entry = found[2]
            elif found := _INSTRUCTION.match(line):
                operands = tuple(_NAME.findall(_until_closed(found[4])))
                current[found[1]] = Instruction(found[1], found[2], found[3], operands, line)

    @functools.cached_property
    def kernels(self) -> list[Kernel]:
        """All launches, in order."""
        return list(self._kernels(self.computations[self.entry], 1))

    def products(self) -> Iterator[tuple[list[str], str]]:
        """Of each matrix product the element types of its operands, and that of its result."""
        for computation in self.computations.values():
            for each in computation.instructions.values():
                if each.opcode == "dot":
                    types = [computation.instructions[operand].type for operand in each.operands]
                    yield [type.split("[")[0] for type in types], each.type.split("[")[0]

    def untiled_products(self) -> list[str]:
        """Fusions that compute a product element by element: no tensor core, and each operand read again."""
        return [
            each.name
            for computation in self.computations.values()
            for each in computation.instructions.values()
            if each.opcode == "fusion" and each.attribute("kind") != "kCustom" and self._has_product(each)
        ]

    def _has_product(self, fusion: Instruction) -> bool:
        fused = self.computations[str(fusion.attribute("calls"))]
        return any(each.opcode == "dot" for each in fused.instructions.values())

    def _kernels(self, computation: Computation, times: int) -> Iterator[Kernel]:
        for each in computation.instructions.values():
            if each.opcode in ("call", "while", "conditional"):
                yield from self._within(each, times)
            elif each.opcode not in NOT_LAUNCHED:
                operands = [self._read(computation, each, i) for i in _first_uses(each.operands)]
                yield Kernel(each.name, each.opcode, sum(operands), nbytes(each.type), times)

    def _within(self, each: Instruction, times: int) -> Iterator[Kernel]:
        if each.opcode == "conditional":
            raise ValueError(f"{each.name}: which branch runs is unknown; compile a program without it.")
        body = each.attribute("to_apply" if each.opcode == "call" else "body")
        if each.opcode == "while":
            count = re.search(r'"known_trip_count":\{"n":"(\d+)"', each.line)
            if count is None:
                raise ValueError(f"{each.name}: how often the loop runs is unknown; bound it by a constant.")
            times *= int(count[1])
        assert body is not None
        yield from self._kernels(self.computations[body], times)

    def _read(self, computation: Computation, each: Instruction, i: int) -> int:
        """Bytes of an operand; those of its slices where the fusion takes nothing but slices of it."""
        whole = nbytes(computation.instructions[each.operands[i]].type)
        called = each.attribute("calls") if each.opcode == "fusion" else None
        if called is None:
            return whole
        fused = self.computations[called]
        (parameter,) = (
            name
            for name, inner in fused.instructions.items()
            if inner.opcode == "parameter" and f"parameter({i})" in inner.line
        )
        users = fused.users(parameter)
        sliced = [user for user in users if user.opcode in ("slice", "dynamic-slice")]
        return sum(nbytes(user.type) for user in sliced) if len(sliced) == len(users) else whole


def nbytes(type: str) -> int:
    """Bytes of an array type, or of all in a tuple."""
    return sum(
        math.ceil(BITS[dtype] * math.prod(int(size) for size in sizes.split(",") if size) / 8)
        for dtype, sizes in _ARRAY.findall(type)
    )


def _first_uses(operands: tuple[str, ...]) -> list[int]:
    return [operands.index(name) for name in dict.fromkeys(operands)]


def _until_closed(text: str) -> str:
    """What stands before the parenthesis that closes the list of operands."""
    depth = 1
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[:i]
    raise ValueError(f"a list of operands does not close: {text[:80]}")
