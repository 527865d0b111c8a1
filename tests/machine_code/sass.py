"""Machine code of a GPU as counts: instructions, registers, memory of a thread's own.

Read from what the vendor's disassembler and object dumper print.
"""

import collections
import dataclasses
import re
import subprocess
import tempfile
from pathlib import Path

LOCAL_MEMORY = ("LDL", "STL")  # loads and stores of what did not fit into registers

_FUNCTION = re.compile(r"^\s*\.section\s+\.text\.([^,\s]+),")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.x]*)")
_RESOURCES = re.compile(r"Function ([^\s:]+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclasses.dataclass(frozen=True)
class Code:
    """One kernel: how often each instruction stands in it, and what a thread or a block takes of the core."""

    name: str
    instructions: collections.Counter[str]
    registers: int
    stack: int  # bytes a thread

    def count(self, *prefixes: str) -> int:
        """Instructions of these names, whatever their suffixes: IMMA counts IMMA.16832.S8.S8."""
        return sum(number for name, number in self.instructions.items() if name.split(".")[0] in prefixes)

    @property
    def products(self) -> dict[str, int]:
        """The tensor-core instructions with all their suffixes."""
        return {
            name: number for name, number in sorted(self.instructions.items()) if "MMA" in name.split(".")[0]
        }

    @property
    def spills(self) -> int:
        """Instructions that reach local memory."""
        return self.count(*LOCAL_MEMORY)


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
    counts = instructions(listing)
    usage = {found[1]: found for found in _RESOURCES.finditer(resources)}
    if missing := counts.keys() ^ usage.keys():
        raise ValueError(f"only one of the two listings has {sorted(missing)}; they are of one binary?")
    return [Code(name, counts[name], int(usage[name][2]), int(usage[name][3])) for name in counts]


def instructions(listing: str) -> dict[str, collections.Counter[str]]:
    """How often each instruction stands in each function of a disassembly."""
    counts: dict[str, collections.Counter[str]] = {}
    current: collections.Counter[str] = collections.Counter()
    for line in listing.splitlines():
        if found := _FUNCTION.match(line):
            current = counts.setdefault(found[1], collections.Counter())
        elif found := _INSTRUCTION.match(line):
            current[found[1]] += 1
    return counts
