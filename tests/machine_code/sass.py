"""Machine code of a GPU as counts: instructions, registers, memory of a thread's own.

Read from what the vendor's disassembler and object dumper print. A loop is what lies between a label and a
branch back to it: the compiler lays loops out in one piece.
"""

import dataclasses
import itertools
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

SPILL_STORES, SPILL_LOADS = "STL", "LDL"  # of what did not fit into registers, in memory of a thread's own

_FUNCTION = re.compile(r"^\s*\.section\s+\.text\.([^,\s]+),")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.x]*)")
_LABEL = re.compile(r"^(\.L\w+):")
_BRANCH = re.compile(r"\bBRA\b.*`\((\.L\w+)\)")
_RESOURCES = re.compile(r"Function ([^\s:]+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclasses.dataclass(frozen=True)
class Code:
    """One kernel: how often each instruction stands in it, and what a thread or a block takes of the core.

    inner: the instructions of the innermost loops with a product of the tensor cores in them.
    """

    name: str
    instructions: Counter[str]
    inner: Counter[str]
    registers: int
    stack: int  # bytes a thread

    @property
    def products(self) -> dict[str, int]:
        """The tensor-core instructions with all their suffixes."""
        return {name: number for name, number in sorted(self.instructions.items()) if _is_product(name)}


def count(instructions: Counter[str], *prefixes: str) -> int:
    """Instructions of these names, whatever their suffixes: IMMA counts IMMA.16832.S8.S8."""
    return sum(number for name, number in instructions.items() if name.split(".")[0] in prefixes)


def disassemble(cubin: bytes, tools: Path) -> list[Code]:
    """The kernels in a GPU binary. tools: the folder of `nvdisasm` and `cuobjdump`."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing, resources = (
            subprocess.run(
                [tools / tool, option, file.name], check=True, capture_output=True, text=True
            ).stdout
            for tool, option in (("nvdisasm", "--print-code"), ("cuobjdump", "--dump-resource-usage"))
        )
    return kernels(listing, resources)


def kernels(listing: str, resources: str) -> list[Code]:
    """The kernels of one disassembly and of the resource table of the same binary."""
    found = functions(listing)
    usage = {found[1]: found for found in _RESOURCES.finditer(resources)}
    if missing := found.keys() ^ usage.keys():
        raise ValueError(f"only one of the two listings has {sorted(missing)}; they are of one binary?")
    return [
        Code(name, Counter(each.instructions), each.inner(), int(usage[name][2]), int(usage[name][3]))
        for name, each in found.items()
    ]


@dataclasses.dataclass(frozen=True)
class Function:
    """The instructions of a function in order; where its labels stand; where its branches lead."""

    instructions: list[str] = dataclasses.field(default_factory=list)
    labels: dict[str, int] = dataclasses.field(default_factory=dict)
    branches: dict[int, str] = dataclasses.field(default_factory=dict)

    def inner(self) -> Counter[str]:
        """What stands in the loops that have a product in them, and no such loop."""
        ends = {end + 1: self.labels[label] for end, label in self.branches.items()}
        products = [i for i, name in enumerate(self.instructions) if _is_product(name)]
        loops = [range(begin, end) for end, begin in ends.items() if any(begin <= i < end for i in products)]
        inner = [
            loop
            for loop in loops
            if not any(other != loop and other[0] in loop and other[-1] in loop for other in loops)
        ]
        return Counter(self.instructions[i] for i in set(itertools.chain(*inner)))


def functions(listing: str) -> dict[str, Function]:
    """The functions of a disassembly, by name."""
    found: dict[str, Function] = {}
    current = Function()
    for line in listing.splitlines():
        if section := _FUNCTION.match(line):
            current = found.setdefault(section[1], Function())
        elif label := _LABEL.match(line):
            current.labels[label[1]] = len(current.instructions)
        elif instruction := _INSTRUCTION.match(line):
            if branch := _BRANCH.search(line):
                current.branches[len(current.instructions)] = branch[1]
            current.instructions.append(instruction[1])
    return found


def _is_product(name: str) -> bool:
    return name.split(".")[0].endswith("MMA")
